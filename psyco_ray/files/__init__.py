"""Tables that users bring: CSV, JSON, Parquet and Excel files, read row by row.

`records.open_records` finds the kind and encoding of a file by its content and its name; `delimited`, `json_rows`,
`parquet` and `sheets` read the kinds, `text` decodes, `packed` opens compressed files. `cells` takes a cell as text.
Nothing here knows what a row is about.
"""
