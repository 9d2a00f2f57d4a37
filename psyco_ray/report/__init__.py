"""Tables, figures, cards and pages, made from facts that other packages computed.

Each module reads records and returns Markdown, SVG or HTML; templates lie beside them. Nothing here loads a model,
calls an API or computes a result that another page would compute again.
"""
