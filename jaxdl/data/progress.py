"""A progress bar for what the user waits for: on a terminal only, and only after two seconds."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

DELAY = 2.0  # seconds of work before the bar appears


@contextlib.contextmanager
def progress(what: str, total: int | None, *, bytes_: bool = False,
             done: int = 0) -> Iterator[Callable[[int], None]]:
    """Yields advance(n), which moves a bar on stderr.

    Args:
      what: the text before the bar.
      total: the sum of all advances, or None if unknown.
      bytes_: whether bytes are counted, shown with their speed.
      done: what was done before.
    """
    if not sys.stderr.isatty():
        yield lambda n: None
        return
    from rich import progress as rich
    from rich.console import Console

    count = ([rich.DownloadColumn(), rich.TransferSpeedColumn()] if bytes_
             else [rich.MofNCompleteColumn()])
    bar = rich.Progress(rich.TextColumn("{task.description}"), rich.BarColumn(), *count,
                        rich.TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    task, begin, shown = bar.add_task(what, total=total, completed=done), time.monotonic(), False

    def advance(n: int) -> None:
        nonlocal shown
        bar.advance(task, n)
        if not shown and time.monotonic() - begin > DELAY:
            bar.start()
            shown = True

    try:
        yield advance
    finally:
        if shown:
            bar.stop()
