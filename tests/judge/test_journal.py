"""The journal of paid answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from psyco_ray.judge.calls import Answer
from psyco_ray.judge.journal import Journal, spent

ANSWERS = st.builds(Answer, st.text(), st.booleans(), st.integers(0), st.integers(0), st.none() | st.text())

ENTRIES = st.dictionaries(st.integers(0, 2**16 - 1), st.tuples(ANSWERS, st.booleans()), max_size=20)


@given(ENTRIES)
def test_the_journal_loads_the_answers_of_a_part(tmp_path_factory, entries) -> None:
    root = tmp_path_factory.mktemp("journal")
    writers = [Journal(root, "a"), Journal(root, "b")]
    for number, (answer, second) in entries.items():
        writers[second].add(f"{number:04x}{'0' * 12}", f"key{number}", answer)
    for part in [f"{number:04x}"[:digits] for number in entries for digits in (1, 2, 3, 4)]:
        expected = {f"key{n}": answer for n, (answer, _) in entries.items() if f"{n:04x}".startswith(part)}
        assert Journal(root, "c").load(part) == expected
    for writer in writers:
        writer.close()


def test_a_cut_or_damaged_line_loses_no_other_line(tmp_path, caplog) -> None:
    def add(name: str) -> None:
        journal = Journal(tmp_path, "a")
        journal.add("ab00", name, Answer("text", True, 1, 2))
        journal.close()

    path = tmp_path / "ab" / "a.jsonl"
    add("one")
    path.write_bytes(path.read_bytes() * 2)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 7)  # as a crash of the machine may leave it
    assert set(Journal(tmp_path, "b").load("ab")) == {"one"}
    assert not caplog.records
    add("two")
    assert set(Journal(tmp_path, "b").load("ab")) == {"one", "two"}
    assert "a.jsonl: line 2 is damaged" in caplog.text
    caplog.clear()
    path.write_bytes(b"\0\0\0\n" + path.read_bytes())
    assert set(Journal(tmp_path, "b").load("a")) == {"one", "two"}
    assert "a.jsonl: line 1 is damaged" in caplog.text


def test_an_unwritable_journal_is_an_input_error(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"/file/?\S* cannot be written: Not a directory"):
        Journal(tmp_path / "file", "a").add("ab00", "key", Answer("", True, 0, 0))


def test_what_was_added_up_is_not_read_again(tmp_path) -> None:
    def add(*dollars: float | None) -> None:
        journal = Journal(tmp_path, "a")
        for amount in dollars:
            journal.add("ab00", "key", Answer("text", True, 1, 2), amount)
        journal.close()

    add(0.25, None, 0.5)
    assert spent(tmp_path) == 0.75
    path = tmp_path / "ab" / "a.jsonl"
    content = path.read_bytes()
    with open(path, "r+b") as file:  # the same file: whoever reads it again finds another sum
        file.write(content.replace(b"0.25", b"0.75"))
    add(1.0)
    assert spent(tmp_path) == 1.75
    replaced = path.with_suffix(".new")
    replaced.write_bytes(content)
    replaced.replace(path)
    assert spent(tmp_path) == 0.75, "another file under the same name is read"
