"""Errors of the rollout actors; this file imports nothing, so that every process can unpickle them."""


class WeightTransferError(RuntimeError):
    """The weights that arrived are not those that were sent."""
