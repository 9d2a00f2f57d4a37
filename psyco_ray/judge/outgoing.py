"""The terms on which texts are sent to APIs, for every stage that sends any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.errors import InputError
from psyco_ray.config.privacy import Privacy, ScrubSent, host_of, leaves
from psyco_ray.judge.client import key_for
from psyco_ray.screening.personal_data import analyzer, scrub


@dataclass(frozen=True)
class Outgoing:
    """Whether and how clients' words may be sent."""

    scrub: ScrubSent  # what is, or has been, removed from them
    privacy: Privacy
    before: bool = False  # they were scrubbed when they were collected

    def allow(self, endpoints: Mapping[str, Endpoint]) -> None:
        """Check that no clients' words would leave this machine without the user's word.

        Args:
            endpoints: the APIs by what they are in the job, such as `the judge gpt-4o`.

        Raises:
            InputError: they would.
        """
        for name, endpoint in endpoints.items():
            if leaves(endpoint.base_url) and not (self.scrub.enabled or self.privacy.send_unscrubbed):
                raise InputError(
                    f"{name}: {host_of(endpoint.base_url)} is outside this machine and would get clients' words as "
                    "they are; set scrub.enabled: true, or privacy.send_unscrubbed: true where the clients' consent "
                    "and a contract with the provider cover it"
                )

    def check(self, endpoints: Mapping[str, Endpoint]) -> None:
        """Check what can be checked before anything is sampled or sent.

        Raises:
            InputError: as `allow` does, or a key or the `presidio` extra is missing.
        """
        self.allow(endpoints)
        for endpoint in endpoints.values():
            key_for(endpoint)
        if self.scrub.enabled and self.scrub.presidio and not self.before:
            analyzer()

    def text(self, endpoint: Endpoint, text: str) -> str:
        """A context or a response as it is sent to an API."""
        if not self.key(endpoint):
            return text
        return scrub(text, self.scrub.presidio).text

    def key(self, endpoint: Endpoint) -> list[dict[str, bool]]:
        """What distinguishes answers about texts that `text` changes from others; empty where it changes none."""
        changed = not self.before and self.scrub.enabled and leaves(endpoint.base_url)
        return [self.scrub.model_dump()] if changed else []

    def describe(self, endpoint: Endpoint) -> str:
        """Where texts go and in which form, for the log.

        Example:
            >>> Outgoing(ScrubSent(), Privacy()).describe(Endpoint(model="m", base_url="http://127.0.0.1:8400/v1"))
            '127.0.0.1, on this machine'
        """
        host = host_of(endpoint.base_url)
        if not leaves(endpoint.base_url):
            return f"{host}, on this machine"
        return f"{host}, {'scrubbed' if self.scrub.enabled else 'as they are (privacy.send_unscrubbed)'}"
