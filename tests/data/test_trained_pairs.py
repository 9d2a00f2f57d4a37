"""A reward model's record of its training pairs."""

import pytest

from psyco_ray.config.training import Data, Part
from psyco_ray.data import trained_pairs
from psyco_ray.data.mixture import mix


def written(where, half=None, **part) -> str:
    where.mkdir()
    train = mix([Part(pairs="sample", **part)], Data(), seed=0, half=half).train
    (where / trained_pairs.FILE).write_text(trained_pairs.dump(train))
    return str(where)


def test_two_halves_share_no_pair_and_a_draw_is_part_of_the_whole(tmp_path) -> None:
    everything = trained_pairs.read(written(tmp_path / "all"))
    a, b = (trained_pairs.read(written(tmp_path / half, half)) for half in ("a", "b"))
    drawn = trained_pairs.read(written(tmp_path / "drawn", count=50))
    assert not a.digests & b.digests
    assert a.digests | b.digests == everything.digests
    assert (a.pairs + b.pairs, drawn.pairs) == (everything.pairs, 50)
    assert drawn.digests < everything.digests


def test_the_record_has_no_words_of_a_client(tmp_path) -> None:
    row = mix([Part(pairs="sample")], Data(), seed=0).train.to_pylist()[0]
    written(tmp_path / "all")
    assert row["asked"].split()[3] not in (tmp_path / "all" / trained_pairs.FILE).read_text()


def test_other_models_have_no_record_and_a_damaged_one_is_named(tmp_path) -> None:
    assert trained_pairs.read("Skywork/Skywork-Reward-Llama-3.1-8B-v0.2") is None
    assert trained_pairs.read(str(tmp_path)) is None
    for content in ('{"pairs": 3', "[]", '{"pairs": 3}', "\udcff"):
        (tmp_path / trained_pairs.FILE).write_text(content, errors="surrogateescape")
        with pytest.raises(ValueError, match=r"trained_pairs\.json is damaged; copy the model again"):
            trained_pairs.read(str(tmp_path))
