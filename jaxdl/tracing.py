"""What a layer may know while it is traced, beside its inputs.

The core sets `runs` and `device_axis` around a trace, and whoever writes a loop over layers sets
`loop`; layers read it to choose between forms of the same computation.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Tracing:
    """The program being traced.

    Attributes:
      runs: how often it will run, as far as known: a form that compiles longer and runs faster
        pays where there are many.
      loop: whether the trace is inside a loop of XLA (scan, while, map).
      device_axis: the name of the axis over devices, where each device runs a program of its own on
        its part of the batch; None where one program runs on all.
      strict: whether what was compiled must not be traced again for other shapes.
      notes: where a layer says which form it chose, for the log; None where nobody reads it.
    """

    runs: int = 1
    loop: bool = False
    device_axis: str | None = None
    strict: bool = False
    notes: set[str] | None = None


UNKNOWN = Tracing()
_current: ContextVar[Tracing] = ContextVar("tracing", default=UNKNOWN)


def current() -> Tracing:
    """Of the trace under way."""
    return _current.get()


@contextlib.contextmanager
def tracing(**changes: object) -> Iterator[None]:
    """Inside, `current()` has these attributes changed."""
    token = _current.set(dataclasses.replace(_current.get(), **changes))  # type: ignore[arg-type]
    try:
        yield
    finally:
        _current.reset(token)
