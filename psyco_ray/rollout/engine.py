"""The vLLM engine of a rollout actor.

Only a process that holds an engine may import this file, because it imports vLLM.
"""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind

from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Rollouts
from psyco_ray.models import loading
from psyco_ray.models.stop_tokens import stop_tokens
from psyco_ray.rollout import kv_cache, weight_receiver
from psyco_ray.rollout.engine_options import engine_options, model_config
from psyco_ray.rollout.engine_weights import EngineWeights
from psyco_ray.rollout.responses import ResponseReader
from psyco_ray.run.types import Group, Prompt, SentWeights, Weights

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Asked:
    """A prompt that is sampled, or waits for it."""

    key: str  # vLLM's request
    prompt: Prompt
    params: SamplingParams
    addition: int  # the number of its prompts
    tokens: int  # of prompt and response, at most


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
        config = model_config(model, settings.dtype, allow_code)
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
        self.weights = EngineWeights(self._llm)
        self._open: dict[str, _Asked] = {}  # that vLLM has, by its request
        self._held: deque[_Asked] = deque()  # for which the KV cache has no room yet
        self._told_held = False
        self._additions = 0

    @property
    def version(self) -> int:
        """Version of the weights."""
        return self.weights.version

    @property
    def busy(self) -> bool:
        """Whether added prompts are not sampled yet."""
        return bool(self._open or self._held)

    def generate(
        self,
        prompts: Sequence[Prompt],
        responses: int,
        temperature: float,
        top_p: float,
        max_tokens: int,
    ) -> Iterator[Group]:
        """Sample responses and yield each prompt's group when its last response ends, in any order.

        With `feed: items` equal prompts and seeds give equal responses: what others have left is aborted. The arguments
        and errors are those of `add`.
        """
        self._abort_all()
        added = self.add(prompts, responses, temperature, top_p, max_tokens)
        try:
            while self.busy:
                yield from (group for _, group in self.step())
        finally:
            self.abort(added)

    def add(
        self,
        prompts: Sequence[Prompt],
        responses: int,
        temperature: float,
        top_p: float,
        max_tokens: int,
        logprobs: bool = False,
    ) -> int:
        """Add prompts, which `step` samples beside those that are there, in the order in which they were added.

        With `feed: continuous` the prefix cache keeps what earlier prompts had, until the weights change: the next turn
        of a dialogue begins with the last one's prompt and response. With `feed: items` the cache is empty when no
        others are there, so that equal prompts and seeds give equal responses. A response ends at the first of the
        model's stop tokens. Nothing else of a model's generation config changes the sampling.

        Args:
            prompts: to sample.
            responses: number of responses to each prompt.
            temperature: of sampling.
            top_p: of sampling.
            max_tokens: of a response.
            logprobs: whether responses have their log-probability, at temperature 1 whatever `temperature` is.

        Returns:
            A number for these prompts.

        Raises:
            InputError: on the CPU, the KV cache is too small; nothing was added.
        """
        self._additions += 1
        new = []
        for number, prompt in enumerate(prompts):
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
            tokens = len(prompt.token_ids) + max_tokens
            new.append(_Asked(f"{self._additions}-{number}", prompt, params, self._additions, tokens))
        for asked in new:
            self._check_kv_cache(asked)
        if not self.busy and (self._settings.feed == "items" or self.weights.asleep):
            self._start_empty()
        self._held.extend(new)
        self._admit()
        return self._additions

    def _admit(self) -> None:
        """Give vLLM the next prompts as long as the KV cache holds all that it decodes together."""
        while self._held and self._fits([*self._open.values(), self._held[0]]):
            asked = self._held.popleft()
            tokens = {"prompt_token_ids": list(asked.prompt.token_ids)}
            self._llm.llm_engine.add_request(asked.key, tokens, asked.params)
            self._open[asked.key] = asked
        if self._held and not self._told_held:
            self._told_held = True
            _log.warning(
                f"rollouts.kv_cache_gb {self._settings.kv_cache_gb:g} holds fewer sequences of these lengths than "
                "rollouts.max_num_seqs: the others wait; raise it if there is memory"
            )

    def step(self) -> list[tuple[int, Group]]:
        """Sample a token of each running response; returns the groups that are complete, each with its prompts' number.

        Raises:
            RuntimeError: weights of another version sampled a response.
        """
        complete = []
        for output in self._llm.llm_engine.step():
            if output.finished:
                assert isinstance(output, RequestOutput)
                asked = self._open.pop(output.request_id)
                complete.append((asked.addition, self._group(asked.prompt, output)))
        self._admit()
        return complete

    def abort(self, addition: int) -> None:
        """Forget the prompts of a number that are not sampled yet."""
        left = [key for key, asked in self._open.items() if asked.addition == addition]
        if left:
            self._llm.llm_engine.abort_request(left)
        for key in left:
            del self._open[key]
        self._held = deque(asked for asked in self._held if asked.addition != addition)

    def _abort_all(self) -> None:
        for addition in {asked.addition for asked in (*self._open.values(), *self._held)}:
            self.abort(addition)

    def _start_empty(self) -> None:
        """Wake up, abort what is left, and drop all cached prefixes."""
        self.weights.wake()
        self._abort_all()
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept cached prefixes, which other weights may have computed")

    def _check_kv_cache(self, asked: _Asked) -> None:
        """Refuse a prompt whose responses together are more than the KV cache holds on a CPU.

        Raises:
            InputError: with the sizes.
        """
        if not self._fits([asked]):
            raise InputError(
                f"rollouts.kv_cache_gb {self._settings.kv_cache_gb:g} holds {self._capacity(asked.tokens)} sequences "
                f"of {asked.tokens} tokens, and a prompt has {asked.params.n} responses; raise it or lower "
                "rollouts.max_num_seqs"
            )

    def _fits(self, asked: Sequence[_Asked]) -> bool:
        """Whether the KV cache holds what vLLM decodes together: its CPU engine dies when it preempts a sequence."""
        if not current_platform.is_cpu() or self._llm.llm_engine.vllm_config.cache_config.num_gpu_blocks is None:
            return True
        concurrent = min(self._settings.max_num_seqs, sum(each.params.n for each in asked))
        return concurrent <= self._capacity(max(each.tokens for each in asked))

    def _capacity(self, tokens: int) -> int:
        """Number of sequences of a length that the KV cache holds."""
        cache = self._llm.llm_engine.vllm_config.cache_config
        return (cache.num_gpu_blocks or 0) // -(-tokens // cache.block_size)

    def load_weights(self, weights: Weights | SentWeights) -> int:
        """Load or confirm weights and drop all cached prefixes; see `EngineWeights.load`."""
        loaded_bytes = self.weights.load(weights)
        self._start_empty()
        return loaded_bytes

    def logprobs(self, texts: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[float]:
        """Log-probabilities of responses under the loaded weights, in nats, each summed over its tokens.

        Args:
            texts: token ids of prompt and response.
        """
        self.weights.wake()
        params = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, detokenize=False)
        whole = [{"prompt_token_ids": [*prompt, *response]} for prompt, response in texts]
        sums = []
        for (prompt, response), output in zip(texts, self._llm.generate(whole, params, use_tqdm=False), strict=True):
            logprobs = output.prompt_logprobs
            assert logprobs is not None, "vLLM returns the prompt_logprobs of the request"
            sums.append(sum(logprobs[len(prompt) + i][token].logprob for i, token in enumerate(response)))
        return sums

    def _group(self, prompt: Prompt, output: RequestOutput) -> Group:
        responses = []
        for completion in sorted(output.outputs, key=lambda c: c.index):
            versions = {span.version for span in getattr(completion, "weight_versions", None) or []}
            if self.version and versions - {str(self.version)}:
                raise RuntimeError(f"a response was sampled by weights {versions}, not by version {self.version}")
            responses.append(
                replace(
                    self._reader.read(
                        prompt.token_ids, completion.text, completion.token_ids, completion.finish_reason == "stop"
                    ),
                    logprob=completion.cumulative_logprob,
                )
            )
        return Group(prompt=prompt, responses=tuple(responses), version=self.version)
