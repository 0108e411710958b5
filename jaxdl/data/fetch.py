"""Files from the network, checked by SHA-256, and archives unpacked with suspicion.

What is interrupted continues: a download at the byte where it stopped, an extraction from the
start. Neither leaves a file or folder under its final name before it is complete and checked.
"""

import contextlib
import fcntl
import hashlib
import http.client
import io
import os
import queue
import re
import shutil
import socket
import ssl
import stat
import tarfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Generator, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from jaxdl.data.progress import progress
from jaxdl.errors import DataMissing, UserError

STALL = 20.0  # seconds without a byte after which a connection is given up
ATTEMPTS = 5  # connections without progress; each continues where the last one stopped
PAUSE = 1.0  # seconds before the second connection, doubled for each further one
CONNECT = 2.5  # seconds to find out whether a server can be reached
CHUNK = 1 << 20
EXPANDED = 64 << 30  # bytes that an archive may grow to, unless the caller says otherwise
ENTRIES = 1_000_000  # files and folders that it may make, likewise
AR = b"!<arch>\n"  # how a Debian package begins
HEADER = 1 << 20  # bytes that the name and the attributes of one member may take


def data_folder() -> Path:
    """Where data is downloaded to: $JAXDL_DATA, or ~/.cache/jaxdl/data."""
    return Path(os.environ.get("JAXDL_DATA") or "~/.cache/jaxdl/data").expanduser()


def reachable(url: str) -> bool:
    """Whether the server of `url` (or the proxy to it) takes connections; known within CONNECT.

    A name look-up without a network can block for minutes, so it waits in a thread of its own.
    """
    server = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(server.scheme)
    if proxy and not urllib.request.proxy_bypass(server.netloc):
        server = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = server.port or (443 if server.scheme == "https" else 80)
    answer: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def connect() -> None:
        try:
            socket.create_connection((server.hostname or "", port), timeout=CONNECT).close()
            answer.put(True)
        except OSError:
            answer.put(False)

    threading.Thread(target=connect, daemon=True).start()
    try:
        return answer.get(timeout=CONNECT)
    except queue.Empty:
        return False


def fetch(url: str, path: Path, sha256: str) -> Path:
    """Downloads `url` to `path` unless it is there; a file under that name is complete and checked.

    Args:
      url: http or https.
      path: the file to write; "PATH.part" holds what came so far, and a later call continues it.
      sha256: the hexadecimal digest that the whole file must have.

    Returns:
      path.

    Raises:
      DataMissing: the server cannot be reached, or keeps failing.
      UserError: the content is not what was expected, or the disk is too small.
    """
    with locked(path.parent):
        if path.exists():
            return path
        part = path.with_name(path.name + ".part")
        if not reachable(url):
            raise DataMissing(f"{url}: cannot be reached from this machine.")
        _download(url, part)
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256:
            part.unlink()
            raise UserError(f"{path.name} from {url}: SHA-256 is {digest}, expected {sha256}; the "
                            f"download was deleted. Try again, or put the original file at {path}.")
        os.replace(part, path)
    return path


class _StartOver(Exception):
    """What was downloaded so far does not fit what the server has."""


def _download(url: str, part: Path) -> None:
    """Brings the whole file to `part`; gives up after ATTEMPTS connections without progress."""
    most, failures = 0, 0
    while True:
        try:
            return _continue(url, part)
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):  # It will not change its mind.
                failures = ATTEMPTS
        except TimeoutError:
            reason = f"no byte came for {STALL:g} s"
        except _StartOver as error:
            part.unlink(missing_ok=True)
            reason = str(error)
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except (ConnectionError, http.client.HTTPException, ssl.SSLError) as error:
            reason = f"the connection was cut ({error})"
        except OSError as error:
            raise UserError(f"{part}: cannot be written ({error.strerror}).") from error
        have = part.stat().st_size if part.exists() else 0
        failures = 1 if have > most and failures < ATTEMPTS else failures + 1
        most = max(most, have)
        if failures >= ATTEMPTS:
            kept = (f"; {have:,} bytes are kept in {part} and the next try continues there"
                    if have else "")
            raise DataMissing(f"{url}: {reason}{kept}.")
        time.sleep(PAUSE * 2 ** (failures - 1))


def _continue(url: str, part: Path) -> None:
    """Appends to `part` what it lacks, over one connection."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "jaxdl"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=STALL)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            if error.headers.get("Content-Range", "").endswith(f"/{have}"):
                return  # Already whole.
            raise _StartOver("the partial file is longer than the server's") from error
        raise
    with response:
        if response.status == 206:
            found = re.match(r"bytes (\d+)-\d+/", response.headers.get("Content-Range", ""))
            if not found or int(found[1]) != have:
                raise _StartOver("the server sent another range than was asked for")
        else:  # It ignores Range and sends all of it.
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length and length.isdigit() else None
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - have > free:
            raise UserError(f"{part.parent}: {url} needs {(total - have) / 1e9:.2f} GB, but only "
                            f"{free / 1e9:.2f} GB are free; set JAXDL_DATA to a larger disk.")
        with (part.open("ab" if have else "wb") as file,
              progress(part.name.removesuffix(".part"), total, bytes_=True, done=have) as advance):
            while chunk := response.read1(CHUNK):
                file.write(chunk)
                have += len(chunk)
                advance(len(chunk))
    if total is not None and have < total:
        raise ConnectionError(f"after {have:,} of {total:,} bytes")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time in `folder`: several that start together must not share a download."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ".lock").open("a")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); set JAXDL_DATA to a "
                        "folder of yours.") from error
    with file:
        with contextlib.suppress(OSError):  # A file system without locks: do without.
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


# Archives.


def extract(archive: Path, folder: Path, *, strip: int = 0, only: str = "",
            limit: int = EXPANDED, entries: int = ENTRIES) -> Path:
    """Unpacks a .tar (.gz, .bz2, .xz), .zip or Debian package into `folder` unless that is there.

    Only plain files and folders are accepted, and only inside of `folder`. They are written to
    "FOLDER.part", which is renamed at the end: under its own name `folder` is complete.

    Args:
      archive: the file to unpack.
      folder: the folder to create.
      strip: how many leading components of each member's name to drop.
      only: a regex; members whose whole name does not match it are passed over, whatever they are;
        "" for all.
      limit: bytes that all files together may have.
      entries: how many files, with the folders that each is in, there may be.

    Returns:
      folder.

    Raises:
      UserError: the archive is damaged, too large, or not to be trusted.
    """
    with locked(folder.parent):
        if folder.exists():
            return folder
        part = folder.with_name(folder.name + ".part")
        shutil.rmtree(part, ignore_errors=True)  # Left by a process that was killed.
        part.mkdir()
        left, made = limit, 0
        too_large = UserError(f"{archive}: unpacks to more than {limit:,} bytes; refused.")
        try:
            with contextlib.closing(_members(archive, only)) as members:
                for name, size, content in members:
                    path = _inside(archive, part, name, strip)
                    if path is None:
                        continue
                    made += len(path.parts) - len(part.parts)
                    if made > entries:
                        raise UserError(f"{archive}: unpacks to more than {entries:,} files and "
                                        "folders; refused.")
                    if size > left:
                        raise too_large
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("xb") as file:
                        while chunk := content.read(CHUNK):
                            left -= len(chunk)
                            if left < 0:
                                raise too_large
                            file.write(chunk)
            os.rename(part, folder)
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{archive}: cannot be unpacked ({error}).") from error
        except Exception as error:  # tarfile and zipfile raise what they like for what is damaged.
            reason = str(error).partition(":")[0].partition("\n")[0] or type(error).__name__
            raise UserError(f"{archive}: the archive is damaged ({reason}); delete it and fetch "
                            "it again.") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return folder


def _members(archive: Path, only: str) -> Generator[tuple[str, int, IO[bytes]], None, None]:
    """(name, stated size, content) of each file that is asked for; refuses links, devices and all
    else that is not plain among them."""
    def passed(name: str) -> bool:
        return bool(only) and re.fullmatch(only, name) is None

    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for member in zipped.infolist():
                if passed(member.filename):
                    continue
                mode = stat.S_IFMT(member.external_attr >> 16)
                if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise UserError(f"{archive}: {member.filename!r} is a link or a device; "
                                    "refused.")
                if not member.is_dir():
                    with zipped.open(member) as content:
                        yield member.filename, member.file_size, content
        return
    with archive.open("rb") as file:
        inner = _debian(file) if file.read(len(AR)) == AR else None
    with tarfile.open(archive if inner is None else None, fileobj=inner,
                      tarinfo=_Member) as tarred:
        while member := tarred.next():
            # Kept, the members of a large archive fill the memory.
            tarred.members = []  # type: ignore[attr-defined]
            if member.size < 0:  # tarfile would go back and read for ever.
                raise tarfile.ReadError("a negative size")
            if member.isdir() or passed(member.name):
                continue
            content = tarred.extractfile(member) if member.isreg() else None
            if content is None:
                raise UserError(f"{archive}: {member.name!r} is a link or a device; refused.")
            yield member.name, member.size, content


def _debian(file: IO[bytes]) -> IO[bytes]:
    """The archive of files in a Debian package, itself an archive of ar(5)'s form: behind its first
    bytes come headers of 60 bytes, each with its member, which begins at an even place."""
    while len(header := file.read(60)) == 60 and header.endswith(b"`\n"):
        if (size := int(header[48:58])) < 0:  # One would go back and read for ever.
            raise tarfile.ReadError("a negative size")
        if header.startswith(b"data.tar"):
            return io.BytesIO(file.read(size))
        file.seek(size + size % 2, os.SEEK_CUR)
    raise tarfile.ReadError("a Debian package without files")


class _Member(tarfile.TarInfo):
    """A member of a tar file whose headers take no more time or memory than headers should."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str | None, errors: str) -> "_Member":
        found = super().frombuf(buf, encoding, errors)  # type: ignore[arg-type]
        if found.size < 0 or (found.size > HEADER and found.type in b"xgXLK"):
            raise tarfile.ReadError(f"a header of {found.size:,} bytes")
        if found.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file")
        return found

    def _sparse(self, *args: object) -> None:
        raise tarfile.ReadError("a sparse file")

    # The map of a sparse file in its three newer forms, which tarfile reads, to the end and on.
    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _sparse


def _inside(archive: Path, folder: Path, name: str, strip: int) -> Path | None:
    """The path of a member in `folder`, or None if nothing is left of its name."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or parts[0].startswith("/") or "\\" in name or "\0" in name:
        raise UserError(f"{archive}: {name!r} would leave the folder; refused.")
    return folder.joinpath(*parts[strip:]) if len(parts) > strip else None
