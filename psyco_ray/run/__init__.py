"""One run directory: what is written, when, and who may write it.

Holds the ledger, local and remote storage, the lease and the mirror of a remote directory, Arrow schemas and the
record types that actors exchange, progress, metrics, the timeline, preemption, and the connection to Ray. Nothing
here knows a model, an actor pool or what a stage computes.
"""
