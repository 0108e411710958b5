"""The run as a process: one at a time in a directory, and leaving when asked to."""

import concurrent.futures
import contextlib
import datetime
import faulthandler
import fcntl
import math
import os
import signal
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from jaxdl.errors import InUse

PREEMPTED = 75  # exit status: saved, and the same command continues

T = TypeVar("T")


class Preempted(BaseException):
    """The run was asked to leave. No Exception, since whoever catches what a user's code raises
    must not catch this."""


class Early(Preempted):
    """It was asked to leave before a step was trained: there is nothing to save, and threads may
    still compile."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name}: left before a step was trained; the same command starts again "
                         "where this one did")


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
            raise InUse(f"{folder} is in use by {holder or 'another process'}.") from None
        self._file.truncate(0)
        now = datetime.datetime.now().isoformat(" ", "seconds")
        self._file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


class Signals:
    """Inside `with`, SIGTERM, SIGINT and SIGHUP ask the run to leave: they set a flag to be polled.
    A second one leaves at once.

    Python delivers signals to the main thread; in another one nothing is changed. What was ignored
    stays so (SIGHUP, under nohup).

    Args:
      agree: the name of the signal to leave on now, from that of one that has come ("" for none);
        where several processes leave together, it waits until that is agreed.
      grace: seconds after the signal when the process ends, whatever it is doing; None: it takes
        the time that it needs.
    """

    def __init__(self, agree: Callable[[str], str] = str, grace: float | None = None) -> None:
        self.name, self.begun = "", False
        self._agree, self._grace = agree, grace
        self._old: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        self._old = _handled((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), self._handle)
        self.name = "".join(_early[:1])
        return self

    def __exit__(self, *error: object) -> None:
        _restored(self._old)

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if self.name:
            os._exit(128 + number)
        self.name = signal.Signals(number).name
        if self._grace is not None:
            timer = threading.Timer(self._grace, self._expire)
            timer.daemon = True
            timer.start()

    def _expire(self) -> None:
        print(f"error: {self.name}: preempt_grace={self._grace:g} seconds were not enough to save; "
              "what is committed is intact.", file=sys.stderr, flush=True)
        os._exit(1)

    def poll(self) -> None:
        """Raises Preempted once a signal has come; Early until `begun` is set."""
        if name := self._agree(self.name):
            raise (Preempted if self.begun else Early)(name)

    def wait(self, future: "Future[T]") -> T:
        """The result of a future, unless a signal comes first to this, the only process. (Several
        make the same calls of `poll`, so they leave later.)"""
        while self._agree is str and not future.done():
            concurrent.futures.wait([future], timeout=0.1)
            self.poll()
        return future.result()


# What a handler raises is lost where no exception can pass, in JAX's callback of the garbage
# collector for one. So a signal is noted, too, for the next `Signals`.
_early: list[str] = []


@contextlib.contextmanager
def leaving_at_once() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise Early wherever the program stands, and SIGINT raises a
    KeyboardInterrupt: for the time in which there is nothing to save. Within an import the process
    ends instead: not every compiled module bears an exception while it starts."""
    def leave(number: int, frame: types.FrameType | None) -> None:
        name = signal.Signals(number).name
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                os.write(2, f"{Early(name)}\n".encode())
                os._exit(128 + number if number == signal.SIGINT else PREEMPTED)
            frame = frame.f_back
        _early.append(name)
        raise KeyboardInterrupt if number == signal.SIGINT else Early(name)

    old = _handled((signal.SIGTERM, signal.SIGINT, signal.SIGHUP), leave)
    try:
        yield
    finally:
        _restored(old)
        _early.clear()


def _handled(numbers: Iterable[int], handler: Callable[..., None]) -> dict[int, Any]:
    """The handlers before."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {n: signal.signal(n, handler) for n in numbers
            if signal.getsignal(n) is not signal.SIG_IGN}


def _restored(old: Mapping[int, Any]) -> None:
    for number, handler in old.items():
        signal.signal(number, handler)


class Watchdog:
    """Ends a process that makes no progress, after it has printed where each thread stands.

    Nothing else bounds a step that waits for another process for ever, or a read that never
    returns. The time in which the process is stopped (SIGSTOP, a suspended machine) does not count.

    Args:
      patience: seconds without progress; None: an hour, and without a limit until training begins,
        since a download may take any time.
      end: tells the other processes, with the text of the error; this one ends when it returns.
    """

    def __init__(self, patience: float | None, end: Callable[[str], None]) -> None:
        self._patience, self._end = patience, end
        self._section, self._step, self._idle = "start", 0, 0.0
        self._stopped = threading.Event()

    def __enter__(self) -> "Watchdog":
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()

    def beat(self, section: str | None = None, step: int = 0) -> None:
        """There is progress, in this section of the run if it is a new one."""
        if section is not None:
            self._section, self._step = section, step
        self._idle = 0.0

    def _watch(self) -> None:
        tick = min(1.0, (self._patience or 4.0) / 4)
        while not self._stopped.wait(tick):
            self._idle += tick
            limit = self._patience or (math.inf if self._section == "start" else 3600.)
            if self._idle >= limit:
                section, step = self._section, self._step
                faulthandler.dump_traceback(all_threads=True)
                self._end(f"no progress for {limit:g} seconds in {section} at step {step:,}; each "
                          "thread stood where it says above. What is committed is intact; "
                          "--stuck_after sets the limit.")
                os._exit(1)
