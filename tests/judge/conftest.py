import pytest
from support.judging import KEY

from psyco_ray.judge import pauses


@pytest.fixture(autouse=True)
def _key_and_short_pauses(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(pauses, "FIRST_PAUSE_S", 0.02)
