"""What files contain, as one hash, for the fingerprint of data that is not kept in memory.

Sizes and names are not enough: a flipped bit changes neither, and formats such as JPEG and Parquet
have no checksum of their own that would tell.
"""

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxdl.data.fetch import data_folder
from jaxdl.data.progress import progress
from jaxdl.errors import UserError

SETTLED = 2.0  # seconds since the last change of a file after which its time tells of the next one


def contents(files: Sequence[Path]) -> str:
    """SHA-256 of the SHA-256 of each file, in their order; read by all processors.

    To read 100 GB takes minutes, so the result is kept in the data folder, under the paths, sizes
    and times of the files. Of these the time of the last change (ctime) is the kernel's own: what
    writes into a file changes it, and cannot set it back. Only what a disk does by itself is then
    seen no more; delete that folder, and all is read again.
    """
    now, newest, known = time.time(), 0., hashlib.sha256()
    for path in files:
        try:
            found = path.stat()
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
        newest = max(newest, found.st_ctime)
        known.update(f"{path.absolute()}\0{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} "
                     f"{found.st_ino}\n".encode())
    kept = data_folder() / "contents" / known.hexdigest()
    with contextlib.suppress(OSError):
        if len(text := kept.read_text()) == 64:
            return text
    whole = hashlib.sha256()
    parts = [files[i:i + 256] for i in range(0, len(files), 256)]
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress("hashing", len(files)) as advance:
        for digests in pool.map(_digests, parts):
            whole.update(b"".join(digests))
            advance(len(digests))
    if newest < now - SETTLED:
        with contextlib.suppress(OSError):  # A folder that cannot be written: read all next time.
            kept.parent.mkdir(parents=True, exist_ok=True)
            part = kept.with_name(f"{kept.name}.{os.getpid()}")
            part.write_text(whole.hexdigest())
            part.replace(kept)
    return whole.hexdigest()


def _digests(paths: Sequence[Path]) -> list[bytes]:
    digests = []
    for path in paths:
        try:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}).") from error
    return digests
