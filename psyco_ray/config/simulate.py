"""Simulated clients: who plays them, and the dialogues that a policy has with them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.job_file import Count, NotNegative, Positive, Section, TemplateOptions
from psyco_ray.config.resources import Rollouts


class Client(Section):
    """The model that plays clients: on vLLM engines of its own, or behind an API."""

    model: str | None = None
    """A packaged name, a directory or a hub id, on the engines of `rollouts`; null: the endpoint's model."""
    template_options: TemplateOptions = Field(default_factory=dict)
    """Options of its chat template, such as {enable_thinking: false}."""
    endpoint: Endpoint | None = None
    """API that plays clients; null: `model` on engines."""
    rollouts: Rollouts = Rollouts()
    """The engines of `model`, beside those of the policy."""
    prompt: str = "client"
    """Entry of the prompts file that asks for a client's next turn; client-few-shot for very small models."""
    temperature: Positive = 1.0
    """Softmax temperature."""
    max_tokens: Count = 200
    """Tokens of a client's turn."""
    max_cost: NotNegative | None = None
    """US dollars that the endpoint's calls of the run may cost; null: no limit."""

    @model_validator(mode="after")
    def _is_played(self) -> Self:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("a simulated client needs either client.model or client.endpoint")
        endpoint = self.endpoint
        if endpoint is None:
            if self.max_tokens >= self.rollouts.max_model_len:
                raise ValueError(
                    f"client.max_tokens {self.max_tokens} leaves no room for a dialogue in "
                    f"client.rollouts.max_model_len {self.rollouts.max_model_len}"
                )
            if self.max_cost is not None:
                raise ValueError("client.max_cost is of an endpoint's calls; leave it out with client.model")
            return self
        if self.template_options:
            raise ValueError("an API renders its prompts; leave client.template_options out with client.endpoint")
        if endpoint.via == "batch":
            raise ValueError("client.endpoint has via: batch, but a dialogue waits for each reply; leave via out")
        if self.max_cost is not None and None in (endpoint.price_in, endpoint.price_out):
            raise ValueError("client.max_cost needs price_in and price_out of the endpoint, dollars per million tokens")
        return self

    @property
    def name(self) -> str:
        """The model, as tables and reports name it."""
        name = self.model if self.endpoint is None else self.endpoint.model
        assert name is not None, "a client has a model or an endpoint"
        return name


class Simulation(Section):
    """Dialogues of a policy with simulated clients, each from a speech or a conversation on."""

    client: Client
    turns: Annotated[int, Field(ge=2)] = 2
    """Responses of the policy in a dialogue, k; the client replies between them."""


class Simulate(Simulation):
    """Dialogues in training: where responses are sampled n-fold, and what ranks them."""

    branch_turn: Count = 1
    """Turn t of the policy at which `sampling.responses` responses are sampled; earlier turns have one."""
    rank: Literal["turn", "dialogue"] = "turn"
    """turn: by the reward of the response at t; dialogue: each is continued to turn k, and all its rewards count."""
    reduce: Literal["mean", "last"] = "mean"
    """Of the rewards of turns t to k that rank a dialogue: their mean, or that of its last turn."""

    @property
    def ranking_turns(self) -> tuple[int, ...]:
        """The turns of the policy whose rewards rank a response, as far as its dialogue has them."""
        if self.rank == "turn":
            return (self.branch_turn,)
        return (self.turns,) if self.reduce == "last" else tuple(range(self.branch_turn, self.turns + 1))

    @model_validator(mode="after")
    def _turns_in_order(self) -> Self:
        if self.branch_turn > self.turns:
            raise ValueError(f"branch_turn {self.branch_turn} is after the last of turns {self.turns}")
        if self.rank == "dialogue" and self.branch_turn == self.turns:
            raise ValueError(
                f"rank dialogue continues the responses of branch_turn {self.branch_turn}, which is the last of turns "
                f"{self.turns}; raise turns, or set rank turn"
            )
        return self
