"""Elastic pools of Ray actors, and the nodes where actors go.

`ActorPool` owns a `Supervisor` (start, update, poll, health-check, restart), which owns a `Dispatcher` (the streams of
items) and a `Slot` for each actor. `fit` plans which nodes hold the actors of a job; `placement` makes Ray options.
Nothing here knows what an actor computes.
"""
