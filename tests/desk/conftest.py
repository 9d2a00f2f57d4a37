"""What the desk's tests share."""

from collections.abc import Iterator

import pytest
from argon2 import PasswordHasher

from psyco_ray.desk import passphrases


@pytest.fixture
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Real argon2 with little work, for tests that are about something else."""
    passphrases._hash_of_nobody.cache_clear()
    monkeypatch.setattr(passphrases, "_HASHER", PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))
    yield
    passphrases._hash_of_nobody.cache_clear()
