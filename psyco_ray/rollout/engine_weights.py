"""The weights of a vLLM engine: how it gets new ones, and where they are while it sleeps.

Weights arrive over vLLM's native weight-transfer API: in chunks that the learner sends (`init_transfer`,
`start_update`, `receive_chunk`, `finish_update`) and `load` confirms by their digest, or all at once from Ray's object
store (`load`). An update that breaks off at any step leaves an engine that can load the stored weights.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import ray

from psyco_ray.models.weight_chunks import Chunk, StoredChunk
from psyco_ray.rollout.errors import WeightTransferError
from psyco_ray.run.types import SentWeights, Weights

if TYPE_CHECKING:
    from vllm import LLM

_SLEEPING_PARTS = ("weights", "kv_cache")  # vLLM's names of what sleep frees
_UNCONFIRMED = -1  # version of an engine whose weights are not confirmed; no request has it


class EngineWeights:
    """Loads weights into a vLLM engine and moves them when it sleeps."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self.version = 0
        self._asleep: set[str] = set()
        self._received: tuple[int, str] | None = None  # version and digest of weights that are received in chunks
        self._open = False  # an update has begun in the workers and has not ended
        self._delta_base = ""  # digest of the weights that the workers hold for the next delta

    @property
    def asleep(self) -> bool:
        """Whether the weights or the KV cache are not on the GPU."""
        return bool(self._asleep)

    def load(self, weights: Weights | SentWeights) -> int:
        """Load weights from the object store, or confirm those received in chunks.

        Weights that arrived otherwise than sent are dropped; another call takes them from the object store.

        Returns:
            Bytes loaded: of all weights, or of a delta.

        Raises:
            WeightTransferError: other weights arrived; from the object store nothing was loaded then.
        """
        if isinstance(weights, SentWeights) and self._received is not None:
            received, self._received = self._received, None
            if received != (weights.version, weights.digest):
                self._abandon()
                raise WeightTransferError(
                    f"version {received[0]} with digest {received[1]} arrived, "
                    f"version {weights.version} with digest {weights.digest} was sent"
                )
            loaded_bytes = weights.bytes
        else:
            self._received = None
            loaded_bytes = self._load_stored(weights if isinstance(weights, Weights) else _stored(weights))
        self.wake()
        self.version = weights.version
        return loaded_bytes

    def init_transfer(self, transport: str, settings: tuple[Any, ...]) -> None:
        """Connect to the sender; see `TransferInit`."""
        if self._open:
            self._abandon()
        self._llm.init_weight_transfer_engine({"init_info": {"transport": transport, "settings": settings}})

    def start_update(self) -> None:
        """Start to receive weights; the engine has no valid version until `load` confirms them."""
        self._received = (_UNCONFIRMED, "of a part")
        self._begin()

    def receive_chunk(self, chunk: Chunk | StoredChunk) -> None:
        """Receive and load an announced chunk."""
        # fetched here, because vLLM's workers of several GPUs are no Ray processes; a single worker shares the memory
        update = {"bucket": ray.get(chunk.ref)} if isinstance(chunk, StoredChunk) else {"chunk": chunk}
        self._llm.update_weights({"update_info": update})

    def finish_update(self, version: int) -> None:
        """Finish the update after the last chunk."""
        self._finish(version)
        digests = set(self._llm.llm_engine.collective_rpc("psyco_ray_received_digest"))
        self._received = version, " and ".join(sorted(digests))  # several if the workers disagree
        self._open = False

    def sleep(self, keep: bool) -> None:
        """Free the GPU until the next call.

        Args:
            keep: move the weights to the host; else drop them, and new ones must be loaded.
        """
        if self._asleep == set(_SLEEPING_PARTS):
            return
        self.wake()  # an update that broke off woke the weights alone, and vLLM sleeps as a whole
        self._llm.sleep(level=1 if keep else 2)
        self._asleep = set(_SLEEPING_PARTS)
        if not keep:
            self.version = _UNCONFIRMED

    def wake(self, *parts: str) -> None:
        """Bring parts of what sleep freed back to the GPU; all if none is named."""
        asleep = [part for part in parts or _SLEEPING_PARTS if part in self._asleep]
        if asleep:
            self._llm.wake_up(asleep)
            self._asleep -= set(asleep)

    def _load_stored(self, weights: Weights) -> int:
        delta = weights.delta if weights.delta is not None and weights.delta.since == self._delta_base else None
        update = {"buckets": ray.get(list(weights.refs))} if delta is None else {"delta": ray.get(delta.ref)}
        self._begin()
        self._delta_base = ""  # stays if the update fails
        try:
            self._llm.update_weights({"update_info": {**update, "digest": weights.digest, "keep": weights.keep}})
            self._finish(weights.version)
        except BaseException:
            self._abandon()
            raise
        self._open = False
        self._delta_base = weights.digest if weights.keep else ""
        return weights.bytes if delta is None else delta.bytes

    def _begin(self) -> None:
        if self._open:
            self._abandon()
        self.wake("weights")
        self.version, self._open = _UNCONFIRMED, True
        self._llm.start_weight_update()

    def _finish(self, version: int) -> None:
        # vLLM 0.24 does not record which weights sampled a token
        versioned = "weight_version" in inspect.signature(self._llm.finish_weight_update).parameters
        self._llm.finish_weight_update(**({"weight_version": str(version)} if versioned else {}))

    def _abandon(self) -> None:
        """End an update that broke off; vLLM has no call for it."""
        self._llm.llm_engine.collective_rpc("psyco_ray_abandon_update")
        self._open = False


def _stored(weights: SentWeights) -> Weights:
    """The same weights in the object store; waits until they are stored."""
    refs, digest, size = ray.get(weights.stored)[:3]
    return Weights(weights.version, digest, tuple(refs), size)
