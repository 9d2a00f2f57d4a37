"""Formats of preference files: a table of shapes, and the pairs of a row in each of them."""
