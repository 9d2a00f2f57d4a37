"""Calls to OpenAI-compatible APIs; every answer is paid once.

- `client`: single calls with retries
- `rate_limit`: limits and budget over all callers
- `journal`: paid answers on disk
- `ask`: journal, server and repeated questions until an answer is readable
- `batch_api`: a provider's batch API as a cheaper source of answers
- `pipeline`: a stage of questions on Ray Data
- `call_run`: missing parts of a stage, expected cost, usage

The content of a question and the meaning of an answer belong to the package that asks.
"""
