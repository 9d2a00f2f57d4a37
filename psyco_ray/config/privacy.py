"""What of clients' words may leave this machine."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from psyco_ray.config.job_file import Section


class Privacy(Section):
    """Consent for what leaves this machine."""

    send_unscrubbed: bool = False
    """Whether APIs on other machines may get clients' words as they are. false: a job that calls one needs
    scrub.enabled. Set it where the clients' consent and a contract with the provider cover it."""


class ScrubSent(Section):
    """Removal of personal data from the texts that are sent to APIs on other machines."""

    enabled: bool = False
    """Replace e-mail addresses, links, phone numbers, names and other personal data before they are sent."""
    presidio: bool = False
    """Also replace names of persons and places; needs the `presidio` extra."""


def host_of(base_url: str) -> str:
    """The host of an API's address, as messages name it."""
    return urlsplit(base_url).hostname or base_url


def leaves(base_url: str) -> bool:
    """Whether calls to an address leave this machine; names other than localhost do, wherever they lead.

    Example:
        >>> leaves("https://api.openai.com/v1"), leaves("http://127.0.0.1:8400/v1"), leaves("http://10.0.0.7/v1")
        (True, False, True)
    """
    host = host_of(base_url)
    if host == "localhost":
        return False
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return True
