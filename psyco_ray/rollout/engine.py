"""The vLLM engine of a rollout actor.

Only a process that holds an engine may import this file, because it imports vLLM. Weights arrive over vLLM's native
weight-transfer API: from Ray's object store (`load_weights`), or over NCCL or CUDA IPC in chunks that the learner sends
(`init_transfer`, `start_update`, `receive_chunk`, `finish_update`) and `load_weights` confirms by their digest.
"""

from __future__ import annotations

import gc
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from vllm import LLM, SamplingParams
from vllm.config import ModelConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Rollouts
from psyco_ray.models import loading
from psyco_ray.models.stop_tokens import stop_tokens
from psyco_ray.rollout import kv_cache, weight_receiver
from psyco_ray.rollout.errors import WeightTransferError
from psyco_ray.rollout.responses import ResponseReader
from psyco_ray.run.types import Group, Prompt, SentWeights, Weights

_SLEEPING_PARTS = ("weights", "kv_cache")  # vLLM's names of what sleep frees
_UNCONFIRMED = -1  # version of an engine whose weights are not confirmed; no request has it
_BATCHED_TOKENS = 4096  # of a step, vLLM's default for a CPU


def engine_options(settings: Rollouts, shared: bool = False, recurrent: bool = False) -> dict[str, Any]:
    """Keyword arguments of vLLM's `LLM`.

    Args:
        settings: engine size, dtype and parallelism.
        shared: whether a learner rank computes on the same GPU while the engine sleeps.
        recurrent: whether the model has layers with a running state.
    """
    assert settings.kv_cache_gb is not None, "an engine that is about to load has the size of its cache"
    options: dict[str, Any] = {
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "enforce_eager": settings.enforce_eager,
        "tensor_parallel_size": settings.tensor_parallel,
        "kv_cache_memory_bytes": int(settings.kv_cache_gb * 2**30),
    }
    if settings.block_size or not settings.gpus:
        options["block_size"] = settings.block_size or 32
    if settings.gpus:
        # the cache size is fixed above; the utilization is only what vLLM expects to find free at start
        return options | {"gpu_memory_utilization": 0.01, "enable_sleep_mode": shared}
    # a seeded request whose prompt is prefilled in chunks makes vLLM rewind its random numbers, which fails on a CPU
    max_batched_tokens = max(_BATCHED_TOKENS, settings.max_model_len)
    options |= {"enable_chunked_prefill": False, "max_num_batched_tokens": max_batched_tokens}
    # vLLM caches a running state in chunks only
    return options | ({"enable_prefix_caching": False} if recurrent else {})


def _model_config(model: Path, dtype: str, allow_code: bool) -> ModelConfig:
    """What vLLM finds in a model.

    Raises:
        InputError: vLLM's code of the model needs torchvision, which is missing or built for another PyTorch.
    """
    try:
        return EngineArgs(model=str(model), dtype=dtype, trust_remote_code=allow_code).create_model_config()
    except ValueError as error:
        if "failed to be inspected" in str(error):  # vLLM logs the cause in a process of its own
            _require_torchvision(model)
        raise


def _require_torchvision(model: Path) -> None:
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:
        raise InputError(
            f"vLLM cannot load {model}, because its code for models of images and text needs torchvision ({error}); "
            "install the torchvision that was built for this PyTorch (jobs/README.md, Installing by hand)"
        ) from error


class Engine:
    """One in-process vLLM engine with the policy's weights.

    Example:
        >>> engine = Engine(Path("models/policy"), Rollouts(max_model_len=512), seed=0)
        >>> prompt = Prompt("speech-1", token_ids=(1, 2, 3), seed=7)
        >>> [group] = engine.generate([prompt], responses=4, temperature=1.0, top_p=1.0, max_tokens=64)
        >>> len(group.responses), group.version
        (4, 0)
    """

    def __init__(
        self, model: Path, settings: Rollouts, seed: int, allow_code: bool = False, shared: bool = False
    ) -> None:
        """Load the model.

        Args:
            model: a transformers directory.
            settings: engine size, dtype and parallelism.
            seed: of everything that a request's own seed does not cover.
            allow_code: whether code from the model's repository may run.
            shared: whether a learner rank computes on the same GPU while this engine sleeps.

        Raises:
            InputError: vLLM's code of the model needs torchvision, which is missing or built for another PyTorch.
        """
        config = _model_config(model, settings.dtype, allow_code)
        settings = kv_cache.sized(settings, model, config.hf_text_config, shared)
        recurrent = config.is_hybrid or config.is_attention_free
        gc.freeze()  # vLLM collects garbage five times while it starts; skip everything imported so far
        self._llm = LLM(
            str(model),
            seed=seed,
            trust_remote_code=allow_code,
            weight_transfer_config=WeightTransferConfig(backend=weight_receiver.BACKEND),
            # workers of several GPUs are processes of their own and must register the backend too
            worker_extension_cls=f"{weight_receiver.__name__}.{weight_receiver.WorkerExtension.__name__}",
            **engine_options(settings, shared, recurrent),
        )
        self._settings = settings
        self._reader = ResponseReader(self._llm.get_tokenizer())
        self._stops = list(stop_tokens(loading.load_tokenizer(model, allow_code)))
        self._version = 0
        self._asleep: set[str] = set()
        self._received: tuple[int, str] | None = None  # version and digest of weights received in chunks
        self._delta_base = ""  # digest of the weights that the workers hold for the next delta
        self._requests = 0

    @property
    def version(self) -> int:
        """Version of the weights."""
        return self._version

    def generate(
        self,
        prompts: list[Prompt],
        responses: int,
        temperature: float,
        top_p: float,
        max_tokens: int,
        logprobs: bool = False,
    ) -> Iterator[Group]:
        """Sample responses and yield each prompt's group when its last response ends, in any order.

        The prefix cache starts empty, so equal prompts and seeds give equal responses. A response ends at the first of
        the model's stop tokens. Nothing else of a model's generation config changes the sampling.

        Args:
            prompts: to sample together.
            responses: number of responses to each prompt.
            temperature: of sampling.
            top_p: of sampling.
            max_tokens: of a response.
            logprobs: whether responses have their log-probability, at temperature 1 whatever `temperature` is.

        Raises:
            InputError: on the CPU, the KV cache is too small.
        """
        self._check_kv_cache(prompts, responses, max_tokens)
        self._wake(*_SLEEPING_PARTS)
        self._llm.reset_prefix_cache()
        engine, waiting = self._llm.llm_engine, {}
        for prompt in prompts:
            params = SamplingParams(
                n=responses,
                temperature=temperature,
                top_p=top_p,
                max_tokens=max_tokens,
                seed=prompt.seed,
                stop_token_ids=self._stops,
                logprobs=0 if logprobs else None,  # vLLM's raw ones of the sampled tokens, before the temperature
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

    def _check_kv_cache(self, prompts: list[Prompt], responses: int, max_tokens: int) -> None:
        """Refuse requests that could fill the KV cache on a CPU: vLLM's CPU engine dies when it preempts a sequence.

        Raises:
            InputError: with the sizes.
        """
        cache = self._llm.llm_engine.vllm_config.cache_config
        if not current_platform.is_cpu() or cache.num_gpu_blocks is None:
            return
        longest = max(len(prompt.token_ids) for prompt in prompts) + max_tokens
        concurrent = min(self._settings.max_num_seqs, len(prompts) * responses)
        capacity = cache.num_gpu_blocks // -(-longest // cache.block_size)
        if concurrent > capacity:
            raise InputError(
                f"rollouts.kv_cache_gb {self._settings.kv_cache_gb:g} holds {capacity} sequences of {longest} tokens, "
                f"{concurrent} are sampled at a time; raise it or lower rollouts.max_num_seqs"
            )

    def load_weights(self, weights: Weights | SentWeights) -> int:
        """Load weights from the object store, or confirm those received in chunks; drops all cached prefixes.

        Returns:
            Bytes loaded: of all weights, or of a delta.

        Raises:
            WeightTransferError: other weights arrived; from the object store nothing was loaded then.
        """
        if isinstance(weights, SentWeights) and self._received is not None:
            if self._received != (weights.version, weights.digest):
                raise WeightTransferError(
                    f"version {self._received[0]} with digest {self._received[1]} arrived, "
                    f"version {weights.version} with digest {weights.digest} was sent"
                )
            loaded_bytes = weights.bytes
        else:
            loaded_bytes = self._load_stored(weights if isinstance(weights, Weights) else _stored(weights))
        self._received = None
        self._wake(*_SLEEPING_PARTS)
        self._llm.reset_prefix_cache()
        self._version = weights.version
        return loaded_bytes

    def init_transfer(self, transport: str, settings: dict[str, Any]) -> None:
        """Connect to the sender over `nccl` or `ipc`; `settings` are those of vLLM's transport."""
        self._llm.init_weight_transfer_engine({"init_info": {"transport": transport, "settings": settings}})

    def start_update(self) -> None:
        """Start to receive weights; the engine has no valid version until `load_weights` confirms them."""
        self._version, self._received = _UNCONFIRMED, (_UNCONFIRMED, "of a part")
        self._wake("weights")
        self._llm.start_weight_update()

    def receive_chunk(self, chunk: dict[str, Any]) -> None:
        """Receive and load a chunk, announced as vLLM's transport does."""
        self._llm.update_weights({"update_info": {"chunk": chunk}})

    def finish_update(self, version: int) -> None:
        """Finish the update after the last chunk."""
        self._finish(version)
        digests = set(self._llm.llm_engine.collective_rpc("psyco_ray_received_digest"))
        self._received = version, " and ".join(sorted(digests))  # several if the workers disagree

    def sleep(self, keep_weights: bool) -> None:
        """Free the GPU until the next call.

        Args:
            keep_weights: move the weights to the host; else drop them, and new ones must be loaded.
        """
        if self._asleep == set(_SLEEPING_PARTS):
            return
        self._wake(*_SLEEPING_PARTS)  # vLLM puts no second part to sleep: an update that failed has woken the weights
        self._llm.sleep(level=1 if keep_weights else 2)
        self._asleep = set(_SLEEPING_PARTS)
        if not keep_weights:
            self._version = _UNCONFIRMED

    def logprob(self, prompt_ids: tuple[int, ...], response_ids: tuple[int, ...]) -> float:
        """Log-probability of a response under the loaded weights, in nats, summed over its tokens."""
        self._wake(*_SLEEPING_PARTS)
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
        tokens = {"prompt_token_ids": [*prompt_ids, *response_ids]}
        logprobs = self._llm.generate([tokens], params, use_tqdm=False)[0].prompt_logprobs
        assert logprobs is not None, "vLLM returns the prompt_logprobs of the request"
        start = len(prompt_ids)
        return sum(logprobs[start + i][token].logprob for i, token in enumerate(response_ids))

    def _wake(self, *parts: str) -> None:
        asleep = [part for part in parts if part in self._asleep]
        if asleep:
            self._llm.wake_up(asleep)
            self._asleep -= set(asleep)

    def _load_stored(self, weights: Weights) -> int:
        self._wake("weights")
        self._llm.start_weight_update()
        delta = weights.delta if weights.delta is not None and weights.delta.since == self._delta_base else None
        # fetched here, because vLLM's workers of several GPUs are no Ray processes; a single worker shares the memory
        update = {"buckets": ray.get(list(weights.refs))} if delta is None else {"delta": ray.get(delta.ref)}
        self._delta_base = ""  # stays if the update fails
        self._llm.update_weights({"update_info": {**update, "digest": weights.digest, "keep": weights.keep}})
        self._delta_base = weights.digest if weights.keep else ""
        self._finish(weights.version)
        return weights.bytes if delta is None else delta.bytes

    def _finish(self, version: int) -> None:
        # vLLM 0.24 does not record which weights sampled a token
        versioned = "weight_version" in inspect.signature(self._llm.finish_weight_update).parameters
        self._llm.finish_weight_update(**({"weight_version": str(version)} if versioned else {}))

    def _group(self, prompt: Prompt, output: RequestOutput) -> Group:
        responses = []
        for completion in sorted(output.outputs, key=lambda c: c.index):
            versions = {span.version for span in getattr(completion, "weight_versions", None) or []}
            if self._version and versions - {str(self._version)}:
                raise RuntimeError(f"a response was sampled by weights {versions}, not by version {self._version}")
            responses.append(
                replace(
                    self._reader.read(
                        prompt.token_ids, completion.text, completion.token_ids, completion.finish_reason == "stop"
                    ),
                    logprob=completion.cumulative_logprob,
                )
            )
        return Group(prompt=prompt, responses=tuple(responses), version=self._version)


def _stored(weights: SentWeights) -> Weights:
    """The same weights in the object store; waits until they are stored."""
    refs, digest, size = ray.get(weights.stored)
    return Weights(weights.version, digest, tuple(refs), size)
