"""Forecasts: how long an iteration takes on a number of GPUs, and how to share them out."""
