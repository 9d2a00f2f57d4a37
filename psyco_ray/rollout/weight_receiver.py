"""The receiving end of weight updates inside a vLLM worker.

A worker has one weight-transfer engine for its life. `WeightReceiver` loads the weights that its actor read from Ray's
object store, and passes chunks over NCCL or CUDA IPC to vLLM's own engines while it computes their checksum.

Written for vLLM 0.32. In 0.24 the worker starts and finishes the reload itself and passes `load_weights` to
`receive_weights`; its NCCL engine drops its communicator without destroying it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from psyco_ray.models import weight_codec
from psyco_ray.models.weight_checksum import WeightChecksum
from psyco_ray.models.weight_codec import Bucket, as_tensor, digest
from psyco_ray.rollout import weight_reload
from psyco_ray.rollout.errors import WeightTransferError

BACKEND = "psyco_ray"
Load = Callable[[Iterable[tuple[str, torch.Tensor]]], Any]


@dataclass
class TransferInit(WeightTransferInitInfo):
    """vLLM's transport of the next weights, and the init info of its own engine."""

    transport: str
    settings: dict[str, Any]


@dataclass
class WeightUpdate(WeightTransferUpdateInfo):
    """All weights, a delta to the held ones, or a chunk as vLLM's transport announces it."""

    buckets: list[Bucket] | None = None
    delta: weight_codec.Delta | None = None
    digest: str = ""  # of all weights
    keep: bool = False  # hold them for the next delta
    chunk: dict[str, Any] | None = None


class WeightReceiver(WeightTransferEngine[TransferInit, WeightUpdate]):
    """Receives weights from the object store, or through one of vLLM's own engines, created for each update."""

    init_info_cls = TransferInit
    update_info_cls = WeightUpdate

    def __init__(self, config: WeightTransferConfig, *parts: Any) -> None:
        super().__init__(config, *parts)
        self._parts = parts
        self._native: Any = None  # vLLM's own engine
        self._started, self._checksum, self._problem = False, WeightChecksum(), ""
        self._held: dict[str, tuple[np.ndarray, str]] = {}

    def init_transfer_engine(self, init_info: TransferInit) -> None:
        """Connect to the sender; over NCCL all receivers must do so at the same time."""
        self.shutdown()
        self._started, self._checksum, self._problem = False, WeightChecksum(), ""
        config = WeightTransferConfig(backend=init_info.transport)
        self._native = WeightTransferEngineFactory.create_engine(config, *self._parts)
        self._native.init_transfer_engine(self._native.parse_init_info(init_info.settings))

    def start_weight_update(self) -> None:
        """Do nothing: the first chunk starts the reload."""

    def receive_weights(self, update_info: WeightUpdate, load_weights: Load | None = None) -> None:
        """Load all weights of the object store, or receive a chunk.

        Raises:
            WeightTransferError: the weights in the object store are not those that were sent, and nothing was loaded;
                or parameters got no weights.
        """
        if update_info.chunk is None:
            self._receive_stored(update_info, load_weights)
            return
        assert self._native is not None, "init_transfer_engine comes first"
        chunk = self._native.parse_update_info(update_info.chunk)
        if load_weights is not None:
            self._native.receive_weights(chunk, load_weights=self._with_checksum(load_weights))
            return
        if not self._started:
            self._native.start_weight_update()
            self._started = True
        self._native.model = _Loader(self._with_checksum(functools.partial(weight_reload.load_weights, self.model)))
        try:
            self._native.receive_weights(chunk)
        finally:
            self._native.model = self.model

    def finish_weight_update(self) -> None:
        """Finish the reload that vLLM's own engine started."""
        if self._started and self._native is not None:
            self._problem = weight_reload.finish(self.model, self._native.finish_weight_update)

    def received_digest(self) -> str:
        """Disconnect; returns the digest of the weights since `init_transfer_engine`.

        Raises:
            WeightTransferError: parameters got no weights.
        """
        received = self._checksum.digest()
        self.shutdown()
        if self._problem:  # raised here, because vLLM counts an update as active whose end failed
            raise WeightTransferError(self._problem)
        return received

    def shutdown(self) -> None:
        """Disconnect from the sender."""
        if self._native is None:
            return
        if (group := getattr(self._native, "model_update_group", None)) is not None:
            group.destroy()
            self._native.model_update_group = None
        self._native.shutdown()
        self._native = None

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
        with weight_reload.experts_packed_again(self.model):
            initialize_layerwise_reload(self.model)
            weight_reload.load_weights(self.model, weights)
            problem = weight_reload.finish(self.model, lambda: finalize_layerwise_reload(self.model, self.model_config))
        if problem:
            raise WeightTransferError(problem)

    def _with_checksum(self, load: Load) -> Load:
        def load_and_add(weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
            chunk = list(weights)
            for name, tensor in chunk:
                self._checksum.add(name, tensor)
            return load(chunk)

        return load_and_add


@dataclass
class _Loader:
    """Stands in for the model, of which vLLM's engines only call `load_weights`."""

    load_weights: Load


class WorkerExtension:
    """Base class that vLLM adds to every worker; importing it registers the transfer engine there."""

    def psyco_ray_received_digest(self) -> str:
        """The digest of the weights that arrived in chunks."""
        return self.weight_transfer_engine.received_digest()  # type: ignore[attr-defined]


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, WeightReceiver)
