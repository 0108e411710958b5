"""Files that are written as a whole or not at all."""

import os
from pathlib import Path


def write_atomically(path: Path, content: str | bytes) -> None:
    """The file has the old content or the new, also after a power failure; nothing is left beside
    it if that fails."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write_through(temporary, content.encode() if isinstance(content, str) else content)
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_through(path: Path, content: bytes) -> None:
    """The content is on the disk when this returns."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """The names in a folder are on the disk when this returns."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
