"""A judge whose server is unavailable for a minute."""

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_an_outage_of_a_minute_loses_no_answer_and_pays_none_twice(outage) -> None:
    results, counts, seconds = outage.result(timeout=300)
    print(f"\nrecovery: judge unavailable for 60 s: {seconds:.1f} s, {counts['by_kind']}")
    assert 60 < seconds < 180
    assert sum(counts["by_kind"].values()) >= 8, "no call was sent during the outage"
    assert all(result.reason is None and result.value for result in results)
    assert (counts["paid"], counts["distinct"], counts["paid_twice"]) == (80, 80, 0)
