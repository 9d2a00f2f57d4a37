"""The vLLM engine behind a few verbs: generate, logprob, load_weights, sleep, version.

This file imports vLLM, so only the process that holds an engine may import it. Weights arrive over vLLM's native
weight-transfer API: out of Ray's object store at once (`load_weights`), or over NCCL or CUDA IPC in pieces that the
learner sends (`meet`, `start_update`, `take_piece`, `finish_update`), which count only when `load_weights` agrees.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from vllm import LLM, SamplingParams
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Rollouts
from psyco_ray.rollout import weight_receiver
from psyco_ray.run.types import Group, Prompt, Response, SentWeights, Weights

_ALL = ("weights", "kv_cache")  # what sleep frees, and waking brings back one by one
_UNPROVEN = -1  # a version that nobody asks for
_BATCHED_TOKENS = 4096  # of a step, vLLM's own default for a CPU


def options(settings: Rollouts, shared: bool = False) -> dict[str, Any]:
    """What vLLM is given of an engine's settings.

    Args:
        settings: engine size, dtype and parallelism.
        shared: whether a learner rank computes on the same GPU while the engine sleeps.
    """
    found: dict[str, Any] = {
        "dtype": settings.dtype,
        "max_model_len": settings.max_model_len,
        "max_num_seqs": settings.max_num_seqs,
        "enforce_eager": settings.enforce_eager,
        "tensor_parallel_size": settings.tensor_parallel,
        "kv_cache_memory_bytes": int(settings.kv_cache_gb * 2**30),
    }
    if settings.block_size or not settings.gpus:
        found["block_size"] = settings.block_size or 32
    if settings.gpus:
        # the cache has its size; a share of the GPU is only what vLLM wants to find free, beside whoever is there
        found |= {"gpu_memory_utilization": 0.01, "enable_sleep_mode": shared}
    else:
        # a prompt is taken whole: after a part of one vLLM would rewind the random numbers of a request with a seed,
        # which it cannot do on a CPU, and die
        found |= {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(_BATCHED_TOKENS, settings.max_model_len),
        }
    return found


class Engine:
    """One in-process vLLM engine with the policy's weights."""

    def __init__(
        self, model: Path, settings: Rollouts, seed: int, trust_remote_code: bool = False, shared: bool = False
    ) -> None:
        """Load the model.

        Args:
            model: a transformers directory.
            settings: engine size, dtype and parallelism.
            seed: of anything that a request's own seed does not cover.
            trust_remote_code: whether code out of the model's repository may run.
            shared: whether a learner rank computes on the same GPU while this engine sleeps.
        """
        gc.freeze()  # vLLM collects five times while it starts: not through everything that was imported
        self._llm = LLM(
            str(model),
            seed=seed,
            trust_remote_code=trust_remote_code,
            weight_transfer_config=WeightTransferConfig(backend=weight_receiver.BACKEND),
            # workers of several GPUs are processes of their own, which have to know the backend too
            worker_extension_cls=f"{weight_receiver.__name__}.{weight_receiver.Receiving.__name__}",
            **options(settings, shared),
        )
        self._settings = settings
        self._version = 0
        self._asleep: set[str] = set()
        self._arrived: tuple[int, str] | None = None  # version and digest of what came in pieces
        self._held = ""  # digest of the weights that the workers hold for the next delta
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
        self._wake(*_ALL)
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
            InputError: naming the sizes that do not fit together.
        """
        cache = self._llm.llm_engine.vllm_config.cache_config
        if not current_platform.is_cpu() or cache.num_gpu_blocks is None:
            return
        longest = max(len(prompt.token_ids) for prompt in prompts) + max_tokens
        at_once = min(self._settings.max_num_seqs, len(prompts) * responses)
        hold = cache.num_gpu_blocks // -(-longest // cache.block_size)
        if at_once > hold:
            raise InputError(
                f"rollouts.kv_cache_gb {self._settings.kv_cache_gb:g} holds {hold} sequences of {longest} tokens, "
                f"{at_once} are to be sampled at a time; raise it or lower rollouts.max_num_seqs"
            )

    def load_weights(self, weights: Weights | SentWeights) -> int:
        """Take new weights and drop everything computed with the old ones.

        Returns:
            Bytes of what was taken: of all weights, or of what changed since those that this engine holds.

        Raises:
            InputError: what arrived is not what was sent (digest). From the object store nothing was loaded then.
        """
        if isinstance(weights, SentWeights) and self._arrived is not None:
            if self._arrived != (weights.version, weights.digest):
                raise InputError(
                    f"version {self._arrived[0]} with digest {self._arrived[1]} arrived, "
                    f"version {weights.version} with digest {weights.digest} was sent"
                )
            taken = weights.bytes
        else:
            taken = self._load_stored(weights if isinstance(weights, Weights) else _stored(weights))
        self._arrived = None
        self._wake(*_ALL)
        self._llm.reset_prefix_cache()
        self._version = weights.version
        return taken

    def meet(self, transport: str, settings: dict[str, Any]) -> None:
        """Get ready to receive weights over one of vLLM's own transports."""
        self._llm.init_weight_transfer_engine({"init_info": {"transport": transport, "settings": settings}})

    def start_update(self) -> None:
        """Weights are about to come; until all have, and are known to be right, this engine has no version."""
        self._version, self._arrived = _UNPROVEN, (_UNPROVEN, "of a part")
        self._wake("weights")
        self._llm.start_weight_update()

    def take_piece(self, piece: dict[str, Any]) -> None:
        """Receive and load some of the weights."""
        self._llm.update_weights({"update_info": {"piece": piece}})

    def finish_update(self, version: int) -> None:
        """All weights have come."""
        self._finish(version)
        found = set(self._llm.llm_engine.collective_rpc("psyco_ray_arrived"))
        self._arrived = version, " and ".join(sorted(found))  # one, or the workers disagree

    def sleep(self, keep_weights: bool) -> None:
        """Free the GPU until something is asked of this engine.

        Args:
            keep_weights: move them to the host; else they are dropped, and others have to be loaded.
        """
        if self._asleep:
            return
        self._llm.sleep(level=1 if keep_weights else 2)
        self._asleep = set(_ALL)
        if not keep_weights:
            self._version = _UNPROVEN

    def _wake(self, *parts: str) -> None:
        due = [part for part in parts if part in self._asleep]
        if due:
            self._llm.wake_up(due)
            self._asleep -= set(due)

    def _load_stored(self, weights: Weights) -> int:
        self._wake("weights")
        self._llm.start_weight_update()
        delta = weights.delta if weights.delta is not None and weights.delta.since == self._held else None
        # fetched here: workers of several GPUs are processes that Ray knows nothing of; a single one shares the memory
        update = {"buckets": ray.get(list(weights.refs))} if delta is None else {"delta": ray.get(delta.ref)}
        self._held = ""  # a delta that fails leaves no version behind
        self._llm.update_weights({"update_info": {**update, "digest": weights.digest, "keep": weights.keep}})
        self._held = weights.digest if weights.keep else ""
        self._finish(weights.version)
        return weights.bytes if delta is None else delta.bytes

    def _finish(self, version: int) -> None:
        # older releases do not say which weights sampled a token
        named = "weight_version" in inspect.signature(self._llm.finish_weight_update).parameters
        self._llm.finish_weight_update(**({"weight_version": str(version)} if named else {}))

    def logprob(self, prompt_ids: tuple[int, ...], response_ids: tuple[int, ...]) -> float:
        """Log-probability of a response under the loaded weights, in nats, summed over its tokens."""
        self._wake(*_ALL)
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


def _stored(weights: SentWeights) -> Weights:
    """The same weights in the object store; waits until they are there."""
    refs, digest, size = ray.get(weights.stored)
    return Weights(weights.version, digest, tuple(refs), size)
