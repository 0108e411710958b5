"""The run as a process: one at a time in a directory, and leaving when asked to."""

import datetime
import fcntl
import os
import signal
import socket
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxdl.errors import UserError

PREEMPTED = 75  # exit status: saved, and the same command continues


class Preempted(Exception):
    """The run was asked to leave."""


class Lock:
    """Held by the one process that writes into a run directory; freed when it dies."""

    def __init__(self, folder: Path) -> None:
        self._file = open(folder / "LOCK", "a+")  # noqa: SIM115 (held as long as the process)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = ""
            for _ in range(20):  # One that started at this very moment is about to sign.
                time.sleep(0.1)
                self._file.seek(0)
                if holder := self._file.read().strip():
                    break
            raise UserError(f"{folder} is in use by {holder or 'another process'}.") from None
        self._file.truncate(0)
        now = datetime.datetime.now().isoformat(" ", "seconds")
        self._file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


class Signals:
    """Inside `with`, SIGTERM and SIGINT set a flag to be polled; a second one leaves at once.

    Python delivers signals to the main thread; in another one nothing is changed.

    Args:
      agree: the name of the signal to leave on now, from that of one that has come ("" for none);
        where several processes leave together, it waits until that is agreed.
    """

    def __init__(self, agree: Callable[[str], str] = str) -> None:
        self.name = ""
        self._agree = agree
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._old = {s: signal.signal(s, self._handle)
                         for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if self.name:
            os._exit(128 + number)
        self.name = signal.Signals(number).name

    def poll(self) -> None:
        """Raises Preempted once a signal has come."""
        if name := self._agree(self.name):
            raise Preempted(name)
