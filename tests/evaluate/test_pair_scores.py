"""What is asked of a scorer about a pair."""

import json

from support.reward_evaluation import parsed, settings

from psyco_ray.data import preferences
from psyco_ray.evaluate import pair_scores, pair_sets


def test_an_unfinished_response_is_scored_as_such_and_in_a_file_of_its_own(tmp_path) -> None:
    row = {"question": "I cannot sleep.", "chosen": "That is hard.", "rejected": "Sleep mo"}
    stems = {}
    for finished in (True, False, None):
        file = tmp_path / f"{finished}.jsonl"
        file.write_text(json.dumps({**row, "rejected_finished": finished}) + "\n")
        pairs = preferences.read(str(file))
        job = parsed(settings(tmp_path, [{"name": "one", "model": "x/y"}]))
        [batch] = pair_scores.batches(job, "one", "hash", "dev", pair_sets.TestPairs(pairs.table, {}), tmp_path)
        assert batch.requests[0].finished == (True, finished is not False)
        stems[finished] = batch.path.stem
    assert stems[True] == stems[None] != stems[False]
