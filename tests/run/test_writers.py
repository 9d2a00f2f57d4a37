"""Values that are written beside a stream."""

import threading
import time

import pytest

from psyco_ray.run.writers import Writers


def test_values_of_the_same_moment_are_written_together_and_all_at_the_end() -> None:
    written, free = list[list[int]](), threading.Event()

    def write(values: list[int]) -> None:
        free.wait(10)
        written.append(values)

    with Writers(write, "test") as writers:
        for value in range(14):
            writers.write(value)
        free.set()
    assert sorted(value for values in written for value in values) == list(range(14))
    assert len(written) <= 4, "those that came first, and those that waited"


def test_a_value_after_which_none_comes_is_written_before_the_end() -> None:
    written = list[list[int]]()
    with Writers(written.append, "test") as writers:
        for value in range(3):
            writers.write(value)
            while len(written) <= value:
                time.sleep(0.001)
    assert written == [[0], [1], [2]]


def test_an_error_ends_the_stream() -> None:
    def write(values: list[int]) -> None:
        raise OSError("the disk is full")

    def stream() -> None:
        with Writers(write, "test") as writers:
            for value in range(100):
                writers.write(value)

    with pytest.raises(OSError, match="the disk is full"):
        stream()


def test_the_stream_s_own_error_is_the_one_that_is_raised() -> None:
    raised = threading.Event()

    def write(_: list[int]) -> None:
        raised.wait(10)
        raise OSError("the disk is full")

    def stream() -> None:
        with Writers(write, "test") as writers:
            writers.write(1)
            threading.Timer(0.05, raised.set).start()
            raise KeyError("stream")

    with pytest.raises(KeyError, match="stream"):
        stream()
    assert raised.is_set(), "it waits for the writes"
