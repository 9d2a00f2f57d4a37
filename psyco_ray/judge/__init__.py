"""Asking an OpenAI-compatible API: limits, retries, journal and validation."""
