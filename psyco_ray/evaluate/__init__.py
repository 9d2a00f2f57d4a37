"""Measures of models on held-out data."""
