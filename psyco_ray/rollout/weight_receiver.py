"""The receiving end of weight updates inside a vLLM worker.

A worker has one weight-transfer engine for its life. `WeightReceiver` loads the weights that its actor read from Ray's
object store, or those that the learner sends in chunks (see `models.weight_chunks`) while it computes their checksum.

Written for vLLM 0.32. In 0.24 the worker starts and finishes the reload itself and passes `load_weights` to
`receive_weights`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.config import set_current_vllm_config
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

from psyco_ray.models import weight_chunks, weight_codec
from psyco_ray.models.weight_checksum import WeightChecksum
from psyco_ray.models.weight_chunks import Chunk
from psyco_ray.models.weight_codec import Bucket, as_tensor, digest
from psyco_ray.models.weight_group import TransferGroup
from psyco_ray.models.weight_memory import MemoryReader
from psyco_ray.rollout import weight_reload
from psyco_ray.rollout.errors import WeightTransferError

BACKEND = "psyco_ray"
Load = Callable[[Iterable[tuple[str, torch.Tensor]]], Any]


@dataclass
class TransferInit(WeightTransferInitInfo):
    """The transport of the next weights, and where a group meets."""

    transport: str
    settings: tuple[Any, ...] = ()  # of a group: address, rank of the engine's first worker, members, seconds


@dataclass
class WeightUpdate(WeightTransferUpdateInfo):
    """All weights, a delta to the held ones, a bucket of the weights, or an announced chunk in a buffer."""

    buckets: list[Bucket] | None = None
    delta: weight_codec.Delta | None = None
    digest: str = ""  # of all weights
    keep: bool = False  # hold them for the next delta
    bucket: Bucket | None = None
    chunk: Chunk | None = None


class WeightReceiver(WeightTransferEngine[TransferInit, WeightUpdate]):
    """Receives weights from the object store, or in chunks over a transport that each update opens."""

    init_info_cls = TransferInit
    update_info_cls = WeightUpdate

    def __init__(self, config: WeightTransferConfig, *parts: Any) -> None:
        super().__init__(config, *parts)
        self._transport: TransferGroup | MemoryReader | None = None
        self._reload = contextlib.ExitStack()  # open during a reload
        self._chunks, self._started = False, False  # whether the next weights come in chunks; whether a reload is open
        self._checksum, self._problem = WeightChecksum(), ""
        self._held: dict[str, tuple[np.ndarray, str]] = {}
        self._summing = ThreadPoolExecutor(1, "checksum")  # of weights in the host's memory, while they are loaded

    def init_transfer_engine(self, init_info: TransferInit) -> None:
        """Connect to the sender; in a group all receivers must do so at the same time.

        Raises:
            TransferError: not all came in time, or the sender gave up.
        """
        self.shutdown()
        self._chunks, self._started, self._checksum, self._problem = True, False, WeightChecksum(), ""
        if init_info.transport in weight_chunks.SHARED:
            self._transport = MemoryReader(init_info.transport)
        if init_info.transport not in weight_chunks.GROUPS:
            return
        address, first_rank, members, timeout_s = init_info.settings
        rank = first_rank + self.parallel_config.rank
        self._transport = TransferGroup(init_info.transport, address, rank, members, timeout_s)
        self._transport.open()

    def start_weight_update(self) -> None:
        """Start the reload while the first chunk is made; stored weights are checked before theirs."""
        if self._chunks:
            self._start_reload()

    def receive_weights(self, update_info: WeightUpdate, load_weights: Load | None = None) -> None:
        """Load all weights of the object store, or a chunk.

        Raises:
            WeightTransferError: the weights in the object store are not those that were sent, and nothing was loaded;
                or parameters got no weights.
            TransferError: the chunk did not arrive.
        """
        if update_info.bucket is not None:
            weights = [(name, as_tensor(*packed)) for name, packed in update_info.bucket.items()]
        elif update_info.chunk is not None:
            assert self._transport is not None, "init_transfer_engine comes first"
            weights = self._transport.receive(update_info.chunk)
        else:
            self._receive_stored(update_info, load_weights)
            return
        if self._problem:  # the others of a group wait until all have received all chunks
            return
        on_host = weights[0][1].device.type == "cpu"
        summed = [self._summing.submit(self._add, weights)] if on_host else []
        if not on_host:
            self._add(weights)
        try:
            self._load_chunk(weights, load_weights)
        except Exception as error:  # noqa: BLE001 - `received_digest` raises it
            self._problem = f"a chunk could not be loaded, {type(error).__name__}: {error}"
        for added in summed:
            added.result()

    def _add(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in weights:
            self._checksum.add(name, tensor)

    def finish_weight_update(self) -> None:
        """Finish the reload that the first chunk started."""
        if self._started and not self._problem:
            self._problem = self._finish_reload()

    def received_digest(self) -> str:
        """Disconnect; returns the digest of the weights since `init_transfer_engine`.

        Raises:
            WeightTransferError: parameters got no weights, or a chunk could not be loaded.
        """
        received = self._checksum.digest()
        self.shutdown()
        if self._problem:  # raised here, because vLLM counts an update as active whose end failed
            raise WeightTransferError(self._problem)
        return received

    def abandon(self) -> None:
        """Forget an update that broke off, and the weights held for a delta."""
        self._chunks, self._started, self._held = False, False, {}
        self._reload.close()
        self.shutdown()

    def shutdown(self) -> None:
        """Disconnect from the sender."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def _load_chunk(self, weights: list[tuple[str, torch.Tensor]], load_weights: Load | None) -> None:
        if load_weights is not None:
            load_weights(weights)
            return
        self._start_reload()
        weight_reload.load_weights(self.model, weights)

    def _start_reload(self) -> None:
        if not self._started:
            self._reload.enter_context(weight_reload.experts_packed_again(self.model))
            weight_reload.start(self.model)
            self._started = True

    def _finish_reload(self) -> str:
        self._chunks, self._started = False, False
        with self._reload:
            return weight_reload.finish(self.model, lambda: finalize_layerwise_reload(self.model, self.model_config))

    @staticmethod
    def trainer_send_weights(*_: Any) -> None:
        """Abstract in vLLM 0.24; the learner's ranks send here."""
        raise AssertionError("weights are sent by the learner's ranks")

    def _receive_stored(self, update: WeightUpdate, load_weights: Load | None) -> None:
        if update.delta is not None:
            assert self._held, "a delta is only sent to a worker that holds its base"
            weight_codec.apply(update.delta, self._held)
            buckets: list[Bucket] = [self._held]
        else:
            assert update.buckets is not None, "an update has buckets or a delta"
            buckets = update.buckets
        received = digest(buckets)
        if received != update.digest:
            self._held = {}
            raise WeightTransferError(
                f"the weights that arrived have digest {received}, those sent had {update.digest}; nothing was loaded"
            )
        if update.delta is None:
            parameters = [(name, packed) for bucket in buckets for name, packed in bucket.items()]
            self._held = {name: (array.copy(), dtype) for name, (array, dtype) in parameters} if update.keep else {}
        weights = ((name, as_tensor(*packed)) for bucket in buckets for name, packed in bucket.items())
        if load_weights is not None:
            load_weights(weights)
            return
        self._start_reload()
        weight_reload.load_weights(self.model, weights)
        if problem := self._finish_reload():
            raise WeightTransferError(problem)


class WorkerExtension:
    """Base class that vLLM adds to every worker; importing it registers the transfer engine there."""

    def psyco_ray_received_digest(self) -> str:
        """The digest of the weights that arrived in chunks."""
        return self.weight_transfer_engine.received_digest()  # type: ignore[attr-defined]

    def psyco_ray_abandon_update(self: Any) -> None:
        """End an update that broke off at any step, so that another can begin."""
        model = self.model_runner.get_model()
        with torch.device(self.device), set_current_vllm_config(self.vllm_config):
            self.weight_transfer_engine.abandon()
            weight_reload.abandon(model, lambda: finalize_layerwise_reload(model, self.model_config))
        self._weight_update_active = False  # vLLM's mark of an update, which it clears only where a chunk failed


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, WeightReceiver)
