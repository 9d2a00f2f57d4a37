"""Tables, figures, cards and pages.

Each module reads records that other packages computed and returns Markdown, SVG or HTML. Pages extend ``base.html``
(one stylesheet, light and dark) and are single files that load nothing. No module here loads a model or calls an API.
"""
