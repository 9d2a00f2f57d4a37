"""The desk: people judge pairs, scores and drafts in a browser, and what they say trains the next policy.

`store` holds everything in one SQLite file. `people`, `queue`, `judgements`, `approvals` and `audit` are functions over
it, without a word about HTTP.
"""
