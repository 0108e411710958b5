"""Where the time of a run goes: its sections, and steps a second.

With JAXDL_SECTIONS=FILE in the environment, each section is written there when it begins, a line of
JSON each: name, step, time, and of a training step the checksum of its example ids. `verify-resume`
kills runs at such moments, and compares the ids.
"""

import contextlib
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

from jaxdl import distributed
from jaxdl.process import Watchdog

ENVIRONMENT = "JAXDL_SECTIONS"
AHEAD = 2.0  # seconds of steps that may wait for the device: a save has to wait for them, too
MEASURED = ("examples_per_second", "data_wait", "flops_per_second", "mfu", "memory_peak")


class Clock:
    """Steps a second, and the part of the time spent waiting for data, without evaluations and
    saves. Where the host runs ahead of the device, an interval takes until its numbers arrive;
    where the device is the host, until its last step is dispatched. The longer of both is right.

    Args:
      watchdog: is told of each section, if there is one.
    """

    def __init__(self, watchdog: Watchdog | None = None) -> None:
        self._watchdog = watchdog
        self._began = self._left = self._synced = time.perf_counter()
        self._steps, self._waited = 0, 0.0
        self._ahead, self._allowed = 0, 1.0
        path = os.environ.get(ENVIRONMENT)
        self._file = open(path, "a") if path and distributed.leads() else None  # noqa: SIM115

    def start(self) -> None:
        """The loop begins."""
        self._began = self._left = self._synced = time.perf_counter()

    def enter(self, section: str, step: int, batches: Sequence[Mapping[str, Any]] = ()) -> None:
        """A section begins: "compile", "restore", "step", "evaluate", "save" or "profile".

        Args:
          section: its name.
          step: of the run.
          batches: of the steps from there on, where those are what begins.
        """
        if self._watchdog is not None:
            self._watchdog.beat(section, step)
        if self._file is None:
            return
        now, ids = time.time(), [(zlib.crc32(b["index"].tobytes()),) for b in batches] or [()]
        for i, crc in enumerate(ids):
            self._file.write(json.dumps([section, step + i, now, *crc]) + "\n")
        self._file.flush()

    def alive(self) -> None:
        """There is progress within a section."""
        if self._watchdog is not None:
            self._watchdog.beat()

    @contextlib.contextmanager
    def waiting(self, steps: int) -> Iterator[None]:
        """The time inside is spent waiting for the data of so many steps."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began
        self._steps += steps

    @contextlib.contextmanager
    def paused(self, section: str, step: int) -> Iterator[None]:
        """The time inside, which is such a section's, does not count. It begins with all steps
        done, or waits for them."""
        self.enter(section, step)
        began = time.perf_counter()
        yield
        self._began += time.perf_counter() - began
        self._left += time.perf_counter() - began
        self._synced, self._ahead = time.perf_counter(), 0

    def follow(self, carry: Any, steps: int) -> None:
        """Waits for the device, where the host has come `AHEAD` seconds ahead of it: what is asked
        of the run then, to save and to leave, begins within that time. The first steps tell how
        many steps that is.

        Args:
          carry: of the steps that were just dispatched.
          steps: how many those are.
        """
        self._ahead += steps
        if self._ahead >= self._allowed:
            jax.block_until_ready(carry)
            synced, self._synced = self._synced, time.perf_counter()
            self._allowed = AHEAD * self._ahead / max(self._synced - synced, 1e-9)
            self._ahead = 0

    def dispatched(self) -> tuple[int, float, float]:
        """(steps, seconds waited, seconds) since the last call."""
        left, self._left = self._left, time.perf_counter()
        counts = self._steps, self._waited, self._left - left
        self._steps, self._waited = 0, 0.0
        return counts

    def arrived(self) -> float:
        """Seconds since the last call."""
        began, self._began = self._began, time.perf_counter()
        return max(self._began - began, 1e-9)
