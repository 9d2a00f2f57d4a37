"""The desk's store: real SQLite files."""

import sqlite3
import stat
from pathlib import Path

import pytest

from psyco_ray.config.errors import InputError
from psyco_ray.desk.store import Item, Store


def pair(number: int, crisis: tuple[str, ...] = ()) -> Item:
    return Item(
        f"p{number}", "pair", "test", f"s{number}", f"speech {number}", ("first", "second"), crisis, {"n": number}
    )


def test_a_new_desk_is_private_and_opens_again(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "desk", create=True)
    assert store.add_items([pair(0), pair(1), pair(0)]) == 2
    assert store.add_items([pair(1), pair(2, ("suicide",))]) == 1
    again = Store.open(tmp_path / "desk")
    assert again.items() == [pair(0), pair(1), pair(2, ("suicide",))]
    assert again.item("p2") == pair(2, ("suicide",))
    assert again.item("none") is None
    assert stat.S_IMODE((tmp_path / "desk").stat().st_mode) == 0o700
    for path in (tmp_path / "desk").glob("desk.*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_other_directories_and_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no desk: it has no desk\.db"):
        Store.open(tmp_path)
    sqlite3.connect(tmp_path / "desk.db").execute("CREATE TABLE other(a)").connection.commit()
    with pytest.raises(InputError, match="no desk's database"):
        Store.open(tmp_path, create=True)


def test_a_transaction_that_raises_leaves_nothing(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "desk", create=True)
    row = ("name", "address", 1.0)
    with pytest.raises(sqlite3.IntegrityError), store.transaction() as db:
        db.executemany("INSERT INTO logins VALUES(?, ?, ?)", [row, (None, *row[1:])])
    assert store.read().execute("SELECT count(*) FROM logins").fetchone()[0] == 0
