"""A judge that is away for a minute."""

import pytest

pytestmark = pytest.mark.slow


def test_a_judge_that_is_away_for_a_minute_costs_no_answer_and_is_paid_once(outage) -> None:
    asked, counts, seconds = outage.result(timeout=300)
    print(f"\nrecovery: a judge away for 60 s: {seconds:.1f} s, {counts['by_kind']}")
    assert 60 < seconds < 180
    assert sum(counts["by_kind"].values()) >= 8, "nobody met the outage"
    assert all(found.reason is None and found.value for found in asked)
    assert (counts["paid"], counts["distinct"], counts["paid_twice"]) == (80, 80, 0)
