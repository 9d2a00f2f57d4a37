"""How pairs are named: by ids and labels of their file, and by no text in the place of one."""

import json

from psyco_ray.data import preferences

PAIR = {"prompt": "I cannot sleep.", "chosen": "Since when?", "rejected": "Sleep."}


def test_texts_in_place_of_ids_and_labels_are_no_names_of_pairs(tmp_path) -> None:
    words = {"prefID": "Anna Meier: I want to die since May", "topic": "He left me. I cannot sleep.", "subset": "a\nb"}
    named = {"prefID": " x-1 ", "topic": "Grief and loss", "source": "mt-bench-easy"}
    asked = [PAIR | more for more in (words, named, words | {"id": "y-2"})]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in asked))
    table = preferences.read(str(tmp_path / "pairs.jsonl")).table
    assert table["pair_id"].to_pylist() == ["1", "x-1", "y-2"]
    assert table["topic"].to_pylist() == [None, "Grief and loss", None]
    assert table["subset"].to_pylist() == [None, "mt-bench-easy", None]
