"""Which members of a pool answer which speech, also after failures."""

from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.data import members
from psyco_ray.data.draws import Draw, Failure, read_failures, record_failure
from psyco_ray.data.respond import ResponseSampling, ResponseTask
from psyco_ray.run import shards
from psyco_ray.run.schemas import COLLECTED, RESPONSES

POOL = tuple(f"m{i}" for i in range(20))


@given(st.integers(0, 1000), st.text(min_size=1))
def test_draws_are_stable_and_a_new_model_replaces_at_most_one(seed, speech):
    before = Draw(POOL, 4).holders(speech, "0", seed)
    assert len(before) == 4
    assert set(before.values()) == {0}
    after = Draw((*POOL, "new"), 4).holders(speech, "0", seed)
    assert after == before or len(after.keys() - before.keys()) == 1


@given(st.integers(0, 1000), st.text(min_size=1), st.lists(st.sampled_from(POOL), unique=True, max_size=16))
def test_failed_members_hand_their_speeches_on_in_the_speech_s_order(seed, speech, failed):
    draw = Draw(POOL, 4, tuple(Failure(name, "gone", {}) for name in failed))
    holders = draw.holders(speech, "0", seed)
    left = tuple(name for name in POOL if name not in failed)
    assert draw.left() == list(left)
    assert set(holders) == set(Draw(left, 4).holders(speech, "0", seed)), "as if the failed ones were not in the pool"
    for name, number in holders.items():
        earlier = Draw(POOL, 4, draw.failures[: number - 1] if number else ()).holders(speech, "0", seed)
        assert (name in earlier) == (number == 0), "a round hands on what its failure leaves, and nothing else"


def test_parts_that_a_member_finished_before_it_failed_stay(tmp_path):
    rows = [{"speech_id": f"{i:016x}", "speech": "I cannot sleep."} for i in range(40)]
    for part in "01":
        shards.write(tmp_path / "speeches", part, rows, COLLECTED)
    sampling = ResponseSampling({}, 1.0, 1.0, 8, seed=3)
    draw, file = Draw(POOL[:4], 2), tmp_path / "failed.json"
    tasks = [ResponseTask(name, sampling, tmp_path / "speeches", tmp_path / name, draw) for name in draw.pool]
    shards.write(tmp_path / "m1", "0", [], RESPONSES)
    first, second = (Failure(name, "gone", members.finished(name, tasks)) for name in ("m1", "m2"))
    record_failure(file, first)
    record_failure(file, second)
    failures = read_failures(file)
    assert failures == (first, second) == (Failure("m1", "gone", {"0": ["0"]}), Failure("m2", "gone", {"0": []}))
    after = Draw(draw.pool, 2, failures)
    for row in rows:
        before = draw.holders(row["speech_id"], "0", 3)
        finished, unfinished = (after.holders(row["speech_id"], part, 3) for part in "01")
        assert ("m1" in finished) == ("m1" in before)
        assert set(unfinished) == {"m0", "m3"}
        assert all(number == 0 for name, number in unfinished.items() if name in before)
    parts = after.parts(tmp_path / "speeches", 3)
    assert parts["m1", 0] == ("0",)
    assert ("m2", 0) not in parts
    assert parts["m3", 1] == ("1",)
    assert parts["m3", 2] == ("0", "1")
