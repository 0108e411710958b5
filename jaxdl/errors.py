"""Mistakes of the user's, told in one line that names the nearest right thing."""

import difflib
import sys
import traceback
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user's. The text is one line; the command prints it and exits with 2."""


class RunError(Exception):
    """What ended a run that was well defined. One line; the command prints it and exits with 1."""


class NoRoom(UserError):
    """A place that cannot be written, or has not enough room."""


class InUse(UserError):
    """A run directory that another process writes into."""


class NotFinite(RunError):
    """What ends a run in which such a step occurred."""


class UsedAsStructure(Exception):
    """Trials differ in floats that a program cannot take as arguments.

    Args:
      paths: of the floats, in {"task": ..., "optimizer": ..., "transforms": ...}.
    """

    def __init__(self, paths: list[str]) -> None:
        super().__init__(", ".join(paths))
        self.paths = paths


class DataMissing(UserError):
    """A data set that is not on this machine and cannot be fetched."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the option closest to `name`, or ""."""
    options = list(options)
    close = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    if not close:  # A leaf typed without its path: 'learning_rate.peak', 'depth'.
        close = [o for o in options if o.split(".")[-1] == name.split(".")[-1]][:1]
    return f" Did you mean '{close[0]}'?" if close else ""


def shown(text: str) -> str:
    """A value as an error text quotes it: not longer than a line has room for."""
    return text if len(text) <= 100 else f"{text[:90]}... ({len(text):,} characters)"


def told(error: BaseException) -> str:
    """What foreign code raised, in one line: the type, the text, and where; of the places rather
    the user's own than one inside an installed package."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename
           and not f.filename.startswith((sys.base_prefix, "<"))]
    where = "".join(f" ({f.filename}:{f.lineno})" for f in (own or frames)[-1:])
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def in_callback(error: BaseException) -> UserError | None:
    """The mistake of the user's that a function met which a compiled one has called: JAX hands it
    on as the last line of a text."""
    last = str(error).splitlines()[-1:] if "callback" in str(error) else []
    name = f"{UserError.__name__}: "
    return UserError(last[0].removeprefix(name)) if last and last[0].startswith(name) else None


def out_of_memory(error: BaseException) -> RunError | None:
    """The one line of an error that means too little memory, of the host or of a device."""
    if not isinstance(error, MemoryError) and not (  # JAX's is a RuntimeError, and not imported.
            isinstance(error, RuntimeError) and any(words in str(error) for words in (
                "RESOURCE_EXHAUSTED", "Out of memory allocating"))):  # at once, or while it ran
        return None
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return RunError(f"out of memory: {said}; a smaller model or --batch_size, "
                    "--task.accumulate or --task.remat takes less. What is committed is intact.")
