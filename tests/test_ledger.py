"""The ledger of a sweep."""

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdl.errors import RunError, UserError
from jaxdl.ledger import DONE, PENDING, Entry, Ledger


def test_what_is_written_is_read(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "ledger.sqlite")
    assert [book.add({"a": i, "b": {"_": "m:C", "x": [1, None]}}) for i in range(3)] == [0, 1, 2]
    book.set("executor", "vmap")
    book.update(1, state=DONE, group=4, value=0.5, results={"test/loss": None}, reason="x",
                step=7, attempts=2, seconds=1.5)
    book.close()
    again = Ledger(tmp_path / "ledger.sqlite")
    assert again.get("executor") == "vmap" and again.get("other") is None
    first, second, _ = again.trials()
    assert first == Entry(0, {"a": 0, "b": {"_": "m:C", "x": [1, None]}}) and first.state == PENDING
    assert second.heartbeat > 0
    second.heartbeat = 0.
    assert second == Entry(1, {"a": 1, "b": {"_": "m:C", "x": [1, None]}}, DONE, 4, 7, 0.5,
                           {"test/loss": None}, "x", 2, 1.5)


def test_changes_at_once_are_all_or_none(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "ledger.sqlite")
    with pytest.raises(KeyError), book.at_once():
        book.add({})
        raise KeyError
    assert book.trials() == []
    with book.at_once():
        book.add({})
        book.add({})
    assert len(book.trials()) == 2


def test_a_kill_leaves_it_before_or_after_a_change(tmp_path: Path) -> None:
    code = ("import os, sys; from pathlib import Path; from jaxdl.ledger import Ledger\n"
            f"book = Ledger(Path({str(tmp_path / 'ledger.sqlite')!r}))\n"
            "book.add({}); book.update(0, state='running')\n"
            "book._db.execute('BEGIN IMMEDIATE'); book.update(0, state='done')\n"
            "os.kill(os.getpid(), 9)")
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent)
    assert done.returncode == -9
    entry, = Ledger(tmp_path / "ledger.sqlite").trials()
    assert entry.state == "running"


def test_damage_is_told_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(UserError, match=r"ledger\.sqlite: not a ledger that can be read .*; the "
                                        "trials' own directories are intact"):
        Ledger(path)
    path.unlink()
    book = Ledger(path)
    book.set("format", 99)
    book.close()
    with pytest.raises(UserError, match=r"written by a newer jaxdl \(format 99; this one reads up"):
        Ledger(path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="a symbolic link; refused"):
        Ledger(path)


def test_a_disk_that_is_full_is_told_in_one_line(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "ledger.sqlite")
    book._db.execute(f"PRAGMA max_page_count={os.path.getsize(book.path) // 4096 + 1}")
    with pytest.raises(RunError, match=r"ledger\.sqlite: database or disk is full; the trials"):
        for _ in range(100):
            book.add({"a": "x" * 4000})
    assert isinstance(book._db, sqlite3.Connection)
    assert len(Ledger(book.path).trials()) < 100
