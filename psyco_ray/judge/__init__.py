"""Calls to OpenAI-compatible APIs: one client, paid once.

Holds the client with retries, rate limits and budgets, the journal of paid answers, the batch API, and the pipeline
that runs a stage of questions on Ray Data. It knows messages, JSON schemas and prices; what is asked, and what an
answer means, belongs to the package that asks.
"""
