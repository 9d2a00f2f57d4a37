"""The vLLM engine behind a few verbs: generate, logprob, load_weights, version.

This file imports vLLM, so only the process that holds an engine may import it. Weights arrive over vLLM's native
weight-transfer API; on the CPU through the transport below, which reads them from Ray's object store.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from vllm import LLM, SamplingParams
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

from psyco_ray.config import Rollouts
from psyco_ray.records import Group, Prompt, Response, Weights
from psyco_ray.sync import as_tensor, digest


class Engine:
    """One in-process vLLM engine with the policy's weights."""

    def __init__(self, model: Path, settings: Rollouts, seed: int, trust_remote_code: bool = False) -> None:
        """Load the model.

        Args:
            model: a transformers directory.
            settings: engine size, dtype and parallelism.
            seed: of anything that a request's own seed does not cover.
            trust_remote_code: whether code out of the model's repository may run.
        """
        on_gpu = settings.gpus > 0
        memory: dict[str, Any] = {"kv_cache_memory_bytes": int(settings.kv_cache_gb * 2**30)}
        block_size = settings.block_size or (None if on_gpu else 32)
        if block_size:
            memory["block_size"] = block_size
        self._llm = LLM(
            str(model),
            dtype=settings.dtype,
            max_model_len=settings.max_model_len,
            max_num_seqs=settings.max_num_seqs,
            enforce_eager=settings.enforce_eager,
            tensor_parallel_size=settings.tensor_parallel,
            seed=seed,
            trust_remote_code=trust_remote_code,
            weight_transfer_config=WeightTransferConfig(backend=ObjectStoreTransfer.backend),
            **memory,
        )
        self._llm.init_weight_transfer_engine({"init_info": {}})
        self._settings = settings
        self._version = 0
        self._requests = 0

    @property
    def version(self) -> int:
        """The version of the weights that the next token is sampled by."""
        return self._version

    def generate(
        self, prompts: list[Prompt], responses: int, temperature: float, top_p: float, max_tokens: int
    ) -> Iterator[Group]:
        """Sample responses to each prompt and yield each group as its last response ends, in any order.

        The prefix cache starts empty, so that equal prompts and seeds give equal responses whatever ran before.
        """
        self._check_room(prompts, responses, max_tokens)
        self._llm.reset_prefix_cache()
        engine, waiting = self._llm.llm_engine, {}
        for prompt in prompts:
            params = SamplingParams(
                n=responses,
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_tokens,
                seed=prompt.seed,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self._requests += 1
            key = str(self._requests)
            waiting[key] = prompt
            engine.add_request(key, {"prompt_token_ids": list(prompt.token_ids)}, params)
        while waiting:
            for output in engine.step():
                if output.finished:
                    assert isinstance(output, RequestOutput)
                    yield self._group(waiting.pop(output.request_id), output)

    def _check_room(self, prompts: list[Prompt], responses: int, max_tokens: int) -> None:
        """On the CPU, refuse what could fill the KV cache: the CPU engine dies when it has to push a sequence out.

        Raises:
            ValueError: naming the sizes that do not fit together.
        """
        cache = self._llm.llm_engine.vllm_config.cache_config
        if not current_platform.is_cpu() or cache.num_gpu_blocks is None:
            return
        longest = max(len(prompt.token_ids) for prompt in prompts) + max_tokens
        at_once = min(self._settings.max_num_seqs, len(prompts) * responses)
        hold = cache.num_gpu_blocks // -(-longest // cache.block_size)
        if at_once > hold:
            raise ValueError(
                f"rollouts.kv_cache_gb {self._settings.kv_cache_gb:g} holds {hold} sequences of {longest} tokens, "
                f"{at_once} are to be sampled at a time; raise it or lower rollouts.max_num_seqs"
            )

    def load_weights(self, weights: Weights) -> None:
        """Take new weights and drop everything computed with the old ones.

        Raises:
            ValueError: what arrived is not what was sent (digest). The engine still has its old weights then.
        """
        self._llm.start_weight_update()
        self._llm.update_weights({"update_info": {"refs": list(weights.refs), "digest": weights.digest}})
        # older releases do not say which weights sampled a token
        named = "weight_version" in inspect.signature(self._llm.finish_weight_update).parameters
        self._llm.finish_weight_update(**({"weight_version": str(weights.version)} if named else {}))
        self._llm.reset_prefix_cache()
        self._version = weights.version

    def logprob(self, prompt_ids: tuple[int, ...], response_ids: tuple[int, ...]) -> float:
        """Log-probability of a response under the loaded weights, in nats, summed over its tokens."""
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        whole = {"prompt_token_ids": [*prompt_ids, *response_ids]}
        found = self._llm.generate([whole], params, use_tqdm=False)[0].prompt_logprobs
        assert found is not None, "prompt log-probabilities were asked for"
        ahead = len(prompt_ids)
        return sum(found[ahead + i][token].logprob for i, token in enumerate(response_ids))

    def _group(self, prompt: Prompt, output: RequestOutput) -> Group:
        responses = []
        for completion in sorted(output.outputs, key=lambda c: c.index):
            versions = {span.version for span in getattr(completion, "weight_versions", None) or []}
            if self._version and versions - {str(self._version)}:
                raise RuntimeError(f"a response was sampled by weights {versions}, not by version {self._version}")
            responses.append(
                Response(
                    text=completion.text,
                    token_ids=tuple(completion.token_ids),
                    finished=completion.finish_reason == "stop",
                )
            )
        return Group(prompt=prompt, responses=tuple(responses), version=self._version)


@dataclass
class ObjectStoreInit(WeightTransferInitInfo):
    """Nothing has to be set up."""


@dataclass
class ObjectStoreUpdate(WeightTransferUpdateInfo):
    """Object references to buckets of ``{name: (array, dtype)}``, and the digest of them all."""

    refs: list[ray.ObjectRef]
    digest: str


class ObjectStoreTransfer(WeightTransferEngine[ObjectStoreInit, ObjectStoreUpdate]):
    """Weights as shared-memory arrays of Ray's object store: no rendezvous, so a pool may grow and shrink.

    Written for vLLM 0.32; in 0.24 the worker begins and ends the reload, and gives `receive_weights` a way to load.
    """

    backend = "psyco_object_store"
    init_info_cls = ObjectStoreInit
    update_info_cls = ObjectStoreUpdate

    def init_transfer_engine(self, init_info: ObjectStoreInit) -> None:
        """Nothing to set up."""

    def start_weight_update(self) -> None:
        """Nothing is touched before the digest is checked."""

    def receive_weights(
        self, update_info: ObjectStoreUpdate, load_weights: Callable[[Iterator[Any]], Any] | None = None
    ) -> None:
        """Check every bucket, then load them all."""
        buckets = ray.get(update_info.refs)
        found = digest(buckets)
        if found != update_info.digest:
            raise ValueError(
                f"the weights that arrived have digest {found}, those sent had {update_info.digest}; nothing was loaded"
            )
        weights = ((name, as_tensor(*packed)) for bucket in buckets for name, packed in bucket.items())
        if load_weights is not None:
            load_weights(weights)
            return
        initialize_layerwise_reload(self.model)
        self.model.load_weights(weights)
        finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied_head(self.model)

    @staticmethod
    def trainer_send_weights(*_: Any) -> None:
        """vLLM 0.24 wants every transport to have it; here the learner's ranks put weights into the object store."""
        raise AssertionError("weights are sent by LearnerRank.export")

    def finish_weight_update(self) -> None:
        """Already finished with the last bucket."""

    def shutdown(self) -> None:
        """Nothing to release."""


def _repack_tied_head(model: Any) -> None:
    """The CPU build keeps a packed copy of a tied output layer that a reload leaves stale: pack it anew."""
    if not current_platform.is_cpu() or not hasattr(model, "lm_head"):
        return
    if model.lm_head.weight is model.model.embed_tokens.weight:
        model.lm_head.quant_method.process_weights_after_loading(model.lm_head)


if ObjectStoreTransfer.backend not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine(ObjectStoreTransfer.backend, ObjectStoreTransfer)
