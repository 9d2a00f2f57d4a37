"""Calls to OpenAI-compatible APIs; every answer is paid once.

- `client`: single calls with retries
- `tokens`: token counts of texts that are not sent yet
- `rate_limit`: limits of each API, and one budget, over all callers and stages
- `journal`: paid answers on disk
- `ask`: journal, server and repeated questions until an answer is readable
- `batch_api`: a provider's batch API as a cheaper source of answers
- `callers`: the workers of a stream: a schedule of parts, their questions as rows, callers that return answers as rows
- `pipeline`: the stream of several stages on Ray Data, and the files of their parts
- `call_run`: missing parts of stages, expected cost, usage

The content of a question and the meaning of an answer belong to the package that asks.
"""
