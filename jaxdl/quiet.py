"""What Orbax and TensorStore print when a save fails, which is not needed.

The error itself comes to `Checkpoints.poll`, which tells it in one line. Beside it come hundreds of
lines from several threads: logs with tracebacks, tasks whose exception nobody asked for, callbacks
into event loops that are closed by then, coroutines that the end of the process interrupts.

Nor are bytes counted for a log that nobody reads, nor is TensorStore asked for the JSON of a local
folder's spec, which is the one it was made of: it never frees the lists and dictionaries in which
it returns either (0.1.86), which is 20 KB a save each.
"""

import logging
import sys
from functools import partial
from typing import Any


def failing_saves() -> None:
    """From now on these are not printed. Call it again as you like."""
    for name in ("absl", "asyncio"):
        if _wanted not in (logger := logging.getLogger(name)).filters:
            logger.addFilter(_wanted)
    for name in ("excepthook", "unraisablehook"):
        if (hook := getattr(sys, name)).__module__ != __name__:
            setattr(sys, name, _without(hook))
    orbax: Any = sys.modules.get("orbax.checkpoint._src.serialization.tensorstore_utils")
    if hasattr(orbax, "get_tensorstore_raw_bytes"):
        orbax.get_tensorstore_raw_bytes = _none
    store: Any = getattr(orbax, "ts", None)
    if hasattr(store, "KvStore") and not isinstance(store, _Like):
        kept = store.KvStore
        orbax.ts = _Like(store, KvStore=_Like(
            kept, Spec=partial(_spec, kept),
            open=lambda spec, **more: kept.open(getattr(spec, "_other", spec), **more)))


def _none(*args: Any, **options: Any) -> int:
    return 0


class _Like:
    """Another object, but for some of its attributes."""

    def __init__(self, other: Any, **own: Any) -> None:
        self.__dict__.update(own, _other=other)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._other, name)


def _spec(store: Any, json: Any) -> Any:
    spec = store.Spec(json)
    return _Like(spec, to_json=lambda: dict(json)) if json.get("driver") == "file" else spec


def _wanted(record: logging.LogRecord) -> bool:
    if record.name == "absl":
        return record.levelno < logging.ERROR or "orbax" not in record.pathname
    text = record.getMessage()
    return "exception was never retrieved" not in text or not _theirs(text)


def _without(hook: Any) -> Any:
    def call(first: Any, *rest: Any) -> None:
        error = getattr(first, "exc_value", rest[0] if rest else None)
        closed = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if not closed and not _theirs(repr(getattr(first, "object", None))):
            hook(first, *rest)

    return call


def _theirs(text: str) -> bool:
    return any(word in text for word in ("orbax", "OCDBT", "async_serialize", "write_fragment"))
