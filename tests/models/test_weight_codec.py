"""Buckets of weights on their way into Ray's object store."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from psyco_ray.models import weight_codec
from psyco_ray.models.weight_codec import Bucket

PARAMETERS = [(f"p{i}", (np.full(size, i, np.int16), "bfloat16")) for i, size in enumerate([3, 4, 20, 1, 1])]


def test_a_bucket_holds_what_fits_or_one_larger_parameter() -> None:
    names = [list(bucket) for bucket in weight_codec.in_buckets(PARAMETERS, 14)]
    assert names == [["p0", "p1"], ["p2"], ["p3", "p4"]]
    assert list(weight_codec.in_buckets([], 14)) == []


def test_buckets_double_from_the_first_to_the_limit() -> None:
    parameters = [(f"p{i}", (np.full(5, i, np.int16), "bfloat16")) for i in range(12)]  # of 10 bytes
    assert [len(bucket) for bucket in weight_codec.in_buckets(parameters, 45, 10)] == [1, 2, 4, 4, 1]
    assert [len(bucket) for bucket in weight_codec.in_buckets(parameters, 45, 100)] == [4, 4, 4]


def test_a_bucket_is_stored_while_the_next_one_is_made(monkeypatch) -> None:
    made, puts = threading.Event(), []

    def put(bucket: Bucket) -> str:
        assert made.wait(30), "the next bucket waits for this one"
        puts.append(list(bucket))
        return f"ref {len(puts)}"

    def buckets() -> Iterator[Bucket]:
        for number, bucket in enumerate(weight_codec.in_buckets(PARAMETERS, 14)):
            assert len(puts) >= number - 1, "memory holds two buckets at most"
            if number:
                made.set()
            yield bucket

    monkeypatch.setattr(weight_codec.ray, "put", put)
    refs: list = []
    digest = weight_codec.digest(weight_codec.stored(buckets(), refs))
    assert digest == weight_codec.digest([dict(PARAMETERS)])
    assert refs == ["ref 1", "ref 2", "ref 3"]
    assert puts == [["p0", "p1"], ["p2"], ["p3", "p4"]]


def test_an_error_of_the_store_reaches_the_exporter(monkeypatch) -> None:
    def put(bucket: Bucket) -> str:
        raise OSError("the object store is full")

    monkeypatch.setattr(weight_codec.ray, "put", put)
    with pytest.raises(OSError, match="is full"):
        weight_codec.digest(weight_codec.stored([dict(PARAMETERS)], []))
