"""Compiled programs are kept on disk, so that the next run of the same program starts at once.

They are in ~/.cache/jaxdl/programs (XDG_CACHE_HOME is honoured). What is over 2 GB there when a
process begins is deleted, the least recently used first. A folder that the user has set
(JAX_COMPILATION_CACHE_DIR or the option of jax) stays as it is set.
JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
"""

import collections
import contextlib
import hashlib
import os
import platform
import sys
from pathlib import Path

import jax

LIMIT = 2 << 30  # bytes
EVENTS = "/jax/compilation_cache/"

_counts: collections.Counter[str] = collections.Counter()


def keep_programs() -> None:
    """Turns the cache on, for programs of any size. Call it again as you like."""
    if not _counts:
        _counts["listening"] = 1
        jax.monitoring.register_event_listener(lambda event, **_: _counts.update((event,)))
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        try:
            folder().mkdir(0o700, parents=True, exist_ok=True)  # What it holds is executed.
            trim(folder(), LIMIT)
        except OSError as error:
            print(f"note: compiled programs are not kept: {folder()}: {error.strerror}.",
                  file=sys.stderr)
            return
        jax.config.update("jax_compilation_cache_dir", str(folder()))
    # By default jax keeps only what took a second to compile: a small experiment has no such
    # program, and many that take a tenth.
    for option, value in (("min_compile_time_secs", 0), ("min_entry_size_bytes", -1)):
        if f"JAX_PERSISTENT_CACHE_{option}".upper() not in os.environ:
            jax.config.update(f"jax_persistent_cache_{option}", value)


def trim(folder: Path, limit: int) -> None:
    """Deletes the least recently used files of a folder until it holds no more than `limit` bytes.

    jax_compilation_cache_max_size would do that too, but reads the whole folder whenever a program
    is put there: with 3,500 of them that took 0.4 s each time.
    """
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # Another process was first.
                stat = entry.stat(follow_symlinks=False)
                files.append((max(stat.st_atime, stat.st_mtime), stat.st_size, entry.path))
    over = sum(size for _, size, _ in files) - limit
    for _, size, path in sorted(files):
        if over <= 0:
            break
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        over -= size


def folder() -> Path:
    """Of this machine's programs: one for another processor may not run here, and homes are shared
    between machines."""
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text().splitlines()
                     if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        flags = platform.processor()
    kind = hashlib.sha256(flags.encode()).hexdigest()[:8]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "jaxdl" / "programs" / f"{platform.machine()}-{kind}"


def lookups() -> tuple[int, int]:
    """(programs found in the cache, programs compiled and put there) since the last call."""
    return _counts.pop(EVENTS + "cache_hits", 0), _counts.pop(EVENTS + "cache_misses", 0)
