"""The ledger of a sweep: which trials there are and what has become of each, in one SQLite file.

One process at a time writes (the sweep's lock is held). Each change is a transaction of its own
that is on disk when the call returns, so a kill leaves the ledger before or after a change.
"""

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxdl.errors import RunError, UserError

FORMAT = 1
PENDING, RUNNING, DONE, PRUNED, FAILED = "pending", "running", "done", "pruned", "failed"
ENDED = (DONE, PRUNED, FAILED)


@dataclass
class Entry:
    """A trial as the ledger has it.

    Attributes:
      number: from 0.
      overrides: by path, as plain JSON.
      state: pending, running, done, pruned or failed.
      group: of the trials that are trained together, or None.
      step: of its newest results.
      value: of the metric that ranks, the best one so far; None before there is one.
      results: the newest value of each metric.
      reason: why it failed or was pruned, in one line.
      attempts: how often it was begun by a process that did not end it.
      seconds: that its training took, over all attempts.
      heartbeat: when it was last heard of (seconds since 1970).
    """

    number: int
    overrides: dict[str, Any]
    state: str = PENDING
    group: int | None = None
    step: int = 0
    value: float | None = None
    results: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    attempts: int = 0
    seconds: float = 0.0
    heartbeat: float = 0.0


_FIELDS = ("number", "overrides", "state", "group_", "step", "value", "results", "reason",
           "attempts", "seconds", "heartbeat")


class Ledger:
    """An open ledger.

    Args:
      path: of the file; made if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._told():
            if path.is_symlink():
                raise UserError(f"{path}: a symbolic link; refused.")
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("CREATE TABLE IF NOT EXISTS sweep (name TEXT PRIMARY KEY, value TEXT)")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS trial (number INTEGER PRIMARY KEY, overrides TEXT, "
                "state TEXT, group_ INTEGER, step INTEGER, value REAL, results TEXT, reason TEXT, "
                "attempts INTEGER, seconds REAL, heartbeat REAL)")
            found = self.get("format")
            if found is None:
                self.set("format", FORMAT)
            elif type(found) is not int or found > FORMAT:
                raise UserError(f"{path}: written by a newer jaxdl (format {found}; this one reads "
                                f"up to {FORMAT}).")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What SQLite raises as one line. A lock or a full disk may pass; damage does not."""
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError) as error:
            damaged = not isinstance(error, sqlite3.OperationalError)
            kind = UserError if damaged else RunError
            raise kind(f"{self.path}: {'not a ledger that can be read' if damaged else error}"
                       + (f" ({error})" if damaged else "")
                       + "; the trials' own directories are intact.") from error

    def get(self, name: str) -> Any:
        """A fact about the sweep, or None."""
        with self._told():
            row = self._db.execute("SELECT value FROM sweep WHERE name = ?", (name,)).fetchone()
            return None if row is None else json.loads(row[0])

    def set(self, name: str, value: Any) -> None:
        with self._told():
            self._db.execute("INSERT OR REPLACE INTO sweep VALUES (?, ?)",
                             (name, json.dumps(value)))

    def add(self, overrides: Mapping[str, Any]) -> int:
        """A new trial, pending; its number."""
        with self._told():
            done = self._db.execute(
                "INSERT INTO trial SELECT COALESCE(MAX(number) + 1, 0), ?, ?, NULL, 0, NULL, '{}', "
                "'', 0, 0, 0 FROM trial", (json.dumps(dict(overrides)), PENDING))
            number = done.lastrowid
            assert number is not None
            return number

    def update(self, number: int, **values: Any) -> None:
        """Changes some fields of a trial."""
        columns = {"group_" if name == "group" else name:
                   json.dumps(value) if name in ("overrides", "results") else value
                   for name, value in {"heartbeat": time.time(), **values}.items()}
        with self._told():
            self._db.execute(f"UPDATE trial SET {', '.join(f'{name} = ?' for name in columns)} "
                             "WHERE number = ?", (*columns.values(), number))

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Changes inside are one transaction."""
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        with self._told():
            self._db.execute("COMMIT")

    def trials(self) -> list[Entry]:
        """All trials, by number."""
        with self._told():
            rows = self._db.execute(f"SELECT {', '.join(_FIELDS)} FROM trial ORDER BY number")
            found = []
            for row in rows.fetchall():
                values: dict[str, Any] = dict(zip(_FIELDS, row, strict=True))
                values["group"] = values.pop("group_")
                for name in ("overrides", "results"):
                    values[name] = json.loads(values[name])
                found.append(Entry(**values))
            return found

    def close(self) -> None:
        self._db.close()
