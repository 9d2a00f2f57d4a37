"""The receiving end of weight updates inside a vLLM worker.

A worker has one weight-transfer engine for its life. Ours takes what its actor found in Ray's object store, which any
engine can do at any time, and hands what comes over NCCL or CUDA IPC to vLLM's own engines, counting what arrives.

Written for vLLM 0.32. In 0.24 the worker begins and ends the reload itself, and gives `receive_weights` a way to load;
its NCCL engine forgets its communicator without ending it.
"""

from __future__ import annotations

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
from vllm.platforms import current_platform

from psyco_ray.config.errors import InputError
from psyco_ray.models import weight_codec
from psyco_ray.models.weight_checksum import WeightChecksum
from psyco_ray.models.weight_codec import Bucket, as_tensor, digest

BACKEND = "psyco_ray"
Load = Callable[[Iterable[tuple[str, torch.Tensor]]], Any]


@dataclass
class TransferInit(WeightTransferInitInfo):
    """Which of vLLM's transports brings the next weights, and what its own engine wants to know beforehand."""

    transport: str
    settings: dict[str, Any]


@dataclass
class Update(WeightTransferUpdateInfo):
    """All weights, what changed in those held, or a piece as a transport of vLLM announces it."""

    buckets: list[Bucket] | None = None
    delta: weight_codec.Delta | None = None  # instead
    digest: str = ""  # of all weights
    keep: bool = False  # hold them for the next delta
    piece: dict[str, Any] | None = None


class WeightReceiver(WeightTransferEngine[TransferInit, Update]):
    """Weights from the object store, or by one of vLLM's own engines, which lives from one meeting to the next."""

    init_info_cls = TransferInit
    update_info_cls = Update

    def __init__(self, config: WeightTransferConfig, *parts: Any) -> None:
        super().__init__(config, *parts)
        self._parts = parts
        self._native: Any = None
        self._started, self._tally = False, WeightChecksum()
        self._held: dict[str, tuple[np.ndarray, str]] = {}

    def init_transfer_engine(self, init_info: TransferInit) -> None:
        """Meet the sender; for NCCL all receivers have to do so at the same time."""
        self.shutdown()
        self._started, self._tally = False, WeightChecksum()
        chosen = WeightTransferConfig(backend=init_info.transport)
        self._native = WeightTransferEngineFactory.create_engine(chosen, *self._parts)
        self._native.init_transfer_engine(self._native.parse_init_info(init_info.settings))

    def start_weight_update(self) -> None:
        """Nothing is touched before there is something to load."""

    def receive_weights(self, update_info: Update, load_weights: Load | None = None) -> None:
        """Load all weights out of the object store, or a piece that comes another way.

        Raises:
            InputError: what is in the object store is not what was sent; nothing was loaded.
        """
        if update_info.piece is None:
            self._receive_stored(update_info, load_weights)
            return
        assert self._native is not None, "the sender is met before it sends"
        piece = self._native.parse_update_info(update_info.piece)
        if load_weights is not None:
            self._native.receive_weights(piece, load_weights=self._counted(load_weights))
            return
        if not self._started:
            self._native.start_weight_update()
            self._started = True
        self._native.model = _Loading(self._counted(self.model.load_weights))
        try:
            self._native.receive_weights(piece)
        finally:
            self._native.model = self.model

    def finish_weight_update(self) -> None:
        """Finish what vLLM's own engine began."""
        if self._started and self._native is not None:
            self._native.finish_weight_update()
            _repack_tied_head(self.model)

    def arrived(self) -> str:
        """The digest of what came since the last meeting, which ends."""
        found = self._tally.digest()
        self.shutdown()
        return found

    def shutdown(self) -> None:
        """Leave the meeting."""
        if self._native is None:
            return
        if (group := getattr(self._native, "model_update_group", None)) is not None:
            group.destroy()
            self._native.model_update_group = None
        self._native.shutdown()
        self._native = None

    @staticmethod
    def trainer_send_weights(*_: Any) -> None:
        """vLLM 0.24 wants every transport to have it; here the learner's ranks send."""
        raise AssertionError("weights are sent by the learner's ranks")

    def _receive_stored(self, update: Update, load_weights: Load | None) -> None:
        if update.delta is not None:
            assert self._held, "a delta goes to who holds what it began with"
            weight_codec.apply(update.delta, self._held)
            buckets: list[Bucket] = [self._held]
        else:
            assert update.buckets is not None, "there is one or the other"
            buckets = update.buckets
        found = digest(buckets)
        if found != update.digest:
            self._held = {}
            raise InputError(
                f"the weights that arrived have digest {found}, those sent had {update.digest}; nothing was loaded"
            )
        if update.delta is None:
            arrived = [(name, packed) for bucket in buckets for name, packed in bucket.items()]
            self._held = {name: (array.copy(), dtype) for name, (array, dtype) in arrived} if update.keep else {}
        weights = ((name, as_tensor(*packed)) for bucket in buckets for name, packed in bucket.items())
        if load_weights is not None:
            load_weights(weights)
            return
        initialize_layerwise_reload(self.model)
        self.model.load_weights(weights)
        finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied_head(self.model)

    def _counted(self, load: Load) -> Load:
        def counted(weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
            whole = list(weights)
            for name, tensor in whole:
                self._tally.add(name, tensor)
            return load(whole)

        return counted


@dataclass
class _Loading:
    """What vLLM's engines need of a model while they receive."""

    load_weights: Load


class Receiving:
    """What every vLLM worker gets in addition; importing it makes the transfer engine known there."""

    def psyco_ray_arrived(self) -> str:
        """The digest of the weights that arrived piece by piece."""
        return self.weight_transfer_engine.arrived()  # type: ignore[attr-defined]


def _repack_tied_head(model: Any) -> None:
    """The CPU build keeps a packed copy of a tied output layer that a reload leaves stale: pack it anew."""
    if not current_platform.is_cpu() or not hasattr(model, "lm_head"):
        return
    if model.lm_head.weight is model.model.embed_tokens.weight:
        model.lm_head.quant_method.process_weights_after_loading(model.lm_head)


if BACKEND not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(BACKEND, WeightReceiver)
