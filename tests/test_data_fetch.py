"""Downloads over a loopback server that misbehaves in every way, and archives that attack."""

import hashlib
import http.server
import io
import os
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jaxdl.data import fetch as fetching
from jaxdl.data import progress as progressing
from jaxdl.data.fetch import data_folder, extract, fetch, reachable
from jaxdl.errors import DataMissing, UserError

CONTENT = bytes(i * i % 251 for i in range(100_000))
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; `plan` says how each request in turn misbehaves, the last one for good."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[str] = ["whole"]
        self.ranges: list[str | None] = []
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/file.bin"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Any

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        plan = self.server.plan
        kind = plan.pop(0) if len(plan) > 1 else plan[0]
        asked = self.headers["Range"]
        self.server.ranges.append(asked)
        if kind.isdigit():
            self.send_error(int(kind))
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if kind.startswith("ignores range"):
            start = 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            start -= kind == "wrong range"
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        size = 10**18 if kind == "huge" else len(CONTENT) - start
        self.send_header("Content-Length", str(size))
        self.end_headers()
        body = CONTENT[start:]
        if kind.endswith(("stalls", "cuts")):
            body = body[:len(body) // 2]
        elif kind == "lies":
            body = b"x" + body[1:]
        self.wfile.write(body)
        self.wfile.flush()
        if kind.endswith("stalls"):
            self.server.released.wait(10)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetching, "STALL", 0.3)
    monkeypatch.setattr(fetching, "PAUSE", 0.01)
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


def test_downloads_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.bin"
    assert fetch(server.url, path, SHA256) == path
    fetch(server.url, path, SHA256)
    assert path.read_bytes() == CONTENT and server.ranges == [None]
    assert sorted(p.name for p in path.parent.iterdir()) == [".lock", "file.bin"]


@pytest.mark.parametrize("fault", ["stalls", "cuts", "503"])
def test_continues_after_a_fault(server: Server, tmp_path: Path, fault: str) -> None:
    server.plan = [fault, "whole"]
    begin = time.monotonic()
    fetch(server.url, tmp_path / "file.bin", SHA256)
    assert time.monotonic() - begin < 5
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.ranges == [None, None if fault == "503" else f"bytes={len(CONTENT) // 2}-"]


def test_a_killed_download_continues(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:70_000])
    fetch(server.url, tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and server.ranges == ["bytes=70000-"]


def test_a_whole_part_is_only_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    fetch(server.url, tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and server.ranges == ["bytes=100000-"]


@pytest.mark.parametrize("had", [CONTENT[:70_000], CONTENT + b"more"])
def test_starts_over(server: Server, tmp_path: Path, had: bytes) -> None:
    """The server ignores Range or sends another one; or the partial file is too long."""
    (tmp_path / "file.bin.part").write_bytes(had)
    server.plan = ["wrong range", "ignores range"] if len(had) < len(CONTENT) else ["whole"]
    fetch(server.url, tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_range_ignored(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:70_000])
    server.plan = ["ignores range"]
    fetch(server.url, tmp_path / "file.bin", SHA256)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT and server.ranges == ["bytes=70000-"]


def test_wrong_checksum(server: Server, tmp_path: Path) -> None:
    server.plan = ["lies"]
    with pytest.raises(UserError) as error:
        fetch(server.url, tmp_path / "file.bin", SHA256)
    got = hashlib.sha256(b"x" + CONTENT[1:]).hexdigest()
    assert str(error.value) == (f"file.bin from {server.url}: SHA-256 is {got}, expected {SHA256}; "
                                "the download was deleted. Try again, or put the original file "
                                f"at {tmp_path}/file.bin.")
    assert [p.name for p in tmp_path.iterdir()] == [".lock"]


def test_gives_up_and_keeps_what_came(server: Server, tmp_path: Path) -> None:
    server.plan = ["cuts", "503"]
    with pytest.raises(DataMissing) as error:
        fetch(server.url, tmp_path / "file.bin", SHA256)
    part = tmp_path / "file.bin.part"
    assert str(error.value) == (f"{server.url}: HTTP 503 Service Unavailable; 50,000 bytes are "
                                f"kept in {part} and the next try continues there.")
    assert part.read_bytes() == CONTENT[:50_000] and len(server.ranges) == fetching.ATTEMPTS


def test_a_server_that_never_gets_on_is_given_up(server: Server, tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """It ignores Range and cuts each time at the same byte: nothing is won by trying for ever."""
    monkeypatch.setattr(fetching, "ATTEMPTS", 2)
    server.plan = ["ignores range, cuts"]
    with pytest.raises(DataMissing, match="the connection was cut"):
        fetch(server.url, tmp_path / "file.bin", SHA256)
    assert len(server.ranges) == 2


def test_not_found_is_not_tried_again(server: Server, tmp_path: Path) -> None:
    server.plan = ["404"]
    with pytest.raises(DataMissing) as error:
        fetch(server.url, tmp_path / "file.bin", SHA256)
    assert str(error.value) == f"{server.url}: HTTP 404 Not Found."
    assert len(server.ranges) == 1


def test_disk_too_small(server: Server, tmp_path: Path) -> None:
    server.plan = ["huge"]
    with pytest.raises(UserError) as error:
        fetch(server.url, tmp_path / "file.bin", SHA256)
    assert str(error.value).startswith(
        f"{tmp_path}: {server.url} needs 1000000000.00 GB, but only ")
    assert str(error.value).endswith(" GB are free; set JAXDL_DATA to a larger disk.")


def test_folder_not_writable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as error:
        fetch("http://127.0.0.1:1/x", tmp_path / "file" / "x", SHA256)
    assert str(error.value) == (f"{tmp_path}/file: cannot be written (File exists); set JAXDL_DATA "
                                "to a folder of yours.")


def test_two_at_once_download_once(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    threads = [threading.Thread(target=fetch, args=(server.url, path, SHA256)) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert path.read_bytes() == CONTENT and len(server.ranges) == 1


def test_reachable(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reachable(server.url)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert not reachable(f"http://127.0.0.1:{unused.getsockname()[1]}/")
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.delenv("no_proxy", raising=False)
    assert reachable("http://name.invalid/")  # The proxy answers for it.


def test_a_blocked_name_lookup_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "CONNECT", 0.2)
    def blocked(*args: Any, **kwargs: Any) -> Any:
        time.sleep(3)
        raise OSError

    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    begin = time.monotonic()
    assert not reachable("http://name.invalid/")
    assert time.monotonic() - begin < 2


def test_unreachable_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataMissing) as error:
        fetch("http://127.0.0.1:1/x.bin", tmp_path / "x.bin", SHA256)
    assert str(error.value) == "http://127.0.0.1:1/x.bin: cannot be reached from this machine."


def test_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXDL_DATA", "/some/where")
    assert data_folder() == Path("/some/where")
    monkeypatch.setenv("JAXDL_DATA", "")
    assert data_folder() == Path.home() / ".cache" / "jaxdl" / "data"


def test_progress_is_shown_on_a_terminal_after_a_while(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def work(terminal: bool, delay: float) -> tuple[str, str]:
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
        monkeypatch.setattr(progressing, "DELAY", delay)
        with progressing.progress("decoding digits", 2) as advance:
            advance(1)
            advance(1)
        return capsys.readouterr()

    monkeypatch.setenv("TERM", "xterm")
    out, err = work(terminal=True, delay=-1)
    assert "decoding digits" in err and "2/2" in err and not out
    assert work(terminal=True, delay=60) == work(terminal=False, delay=-1) == ("", "")


# Archives.


def tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, to: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "w"])
def test_extracts_tar(tmp_path: Path, mode: str) -> None:
    archive = tar(tmp_path / "a", [(member("top", tarfile.DIRTYPE), b""),
                                   (member("top/a.bin"), b"one"),
                                   (member("top/sub/b.bin"), b"two")], mode)
    folder = extract(archive, tmp_path / "out", strip=1)
    assert (folder / "a.bin").read_bytes() == b"one"
    assert (folder / "sub" / "b.bin").read_bytes() == b"two"
    archive.unlink()
    assert extract(archive, tmp_path / "out") == folder  # It is there already.


def test_extracts_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("top/a.bin", b"one")
    assert (extract(tmp_path / "a.zip", tmp_path / "out") / "top/a.bin").read_bytes() == b"one"


def test_what_is_not_asked_for_is_passed_over(tmp_path: Path) -> None:
    """Even a link; one that is asked for is refused, and so is a way out."""
    archive = tar(tmp_path / "a", [(member("top/a.png"), b"one"), (member("top/a.txt"), b"two"),
                                   (member("link", tarfile.SYMTYPE, "/etc/passwd"), b""),
                                   (member("../b.png"), b"three")], "w")
    folder = extract(archive, tmp_path / "out", only=r"top/.*\.png")
    assert [p.name for p in folder.rglob("*") if p.is_file()] == ["a.png"]
    for only, reason in ((r"link", "is a link or a device"), (r".*\.png", "would leave")):
        with pytest.raises(UserError, match=reason):
            extract(archive, tmp_path / "other", only=only)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("a.png", b"one")
        zipped.writestr("a.so", b"two")
    folder = extract(tmp_path / "a.zip", tmp_path / "zip", only=r".*\.png")
    assert [p.name for p in folder.iterdir()] == ["a.png"]


@pytest.mark.parametrize(("info", "reason"), [
    (member("../evil"), "'../evil' would leave the folder; refused."),
    (member("a/../../evil"), "'a/../../evil' would leave the folder; refused."),
    (member("/tmp/evil"), "'/tmp/evil' would leave the folder; refused."),
    (member("a\\..\\evil"), "'a\\\\..\\\\evil' would leave the folder; refused."),
    (member("link", tarfile.SYMTYPE, "/etc/passwd"), "'link' is a link or a device; refused."),
    (member("link", tarfile.LNKTYPE, "good"), "'link' is a link or a device; refused."),
    (member("pipe", tarfile.FIFOTYPE), "'pipe' is a link or a device; refused."),
    (member("disk", tarfile.BLKTYPE), "'disk' is a link or a device; refused."),
])
def test_evil_tar(tmp_path: Path, info: tarfile.TarInfo, reason: str) -> None:
    archive = tar(tmp_path / "a.tar.gz", [(member("good"), b"good"), (info, b"")])
    with pytest.raises(UserError) as error:
        extract(archive, tmp_path / "sub" / "out")
    assert str(error.value) == f"{archive}: {reason}"
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".lock", "a.tar.gz", "sub"]


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "link"])
def test_evil_zip(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = ((stat.S_IFLNK if name == "link" else stat.S_IFREG) | 0o644) << 16
        archive.writestr(info, b"/etc/passwd")
    with pytest.raises(UserError, match="link or a device" if name == "link" else "would leave"):
        extract(path, tmp_path / "sub" / "out")
    assert sorted(p.name for p in tmp_path.rglob("*")) == [".lock", "a.zip", "sub"]


def test_bomb(tmp_path: Path) -> None:
    archive = tar(tmp_path / "a.tar.gz", [(member("zeros"), bytes(1_000_000))])
    assert archive.stat().st_size < 10_000
    with pytest.raises(UserError) as error:
        extract(archive, tmp_path / "out", limit=999_999)
    assert str(error.value) == f"{archive}: unpacks to more than 999,999 bytes; refused."
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()
    assert extract(archive, tmp_path / "out", limit=1_000_000).exists()


@pytest.mark.parametrize("kind", ["tar.gz", "zip", "neither", "empty"])
def test_damaged_archive(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", os.urandom(1000))
        damaged = bytearray(path.read_bytes())
        damaged[500] ^= 1
    elif kind == "tar.gz":
        tar(path, [(member("a"), bytes(range(256)) * 400)])
        damaged = path.read_bytes()[:-100]
    else:
        damaged = b"no archive" if kind == "neither" else b""
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"the archive is damaged|cannot be unpacked") as error:
        extract(path, tmp_path / "out")
    assert "\n" not in str(error.value) and str(error.value).startswith(f"{path}: ")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()


def test_a_killed_extraction_leaves_no_half_set(tmp_path: Path) -> None:
    """A process is killed in the middle; the next one starts over and finishes."""
    archive = tar(tmp_path / "a.tar.gz", [(member(f"{i}.bin"), bytes(1000)) for i in range(5)])
    code = ("import os, sys; from pathlib import Path; from jaxdl.data import fetch\n"
            "inside, names = fetch._inside, []\n"
            "def die(archive, folder, name, strip):\n"
            "    names.append(name)\n"
            "    if len(names) == 4: os._exit(9)\n"
            "    return inside(archive, folder, name, strip)\n"
            "fetch._inside = die\n"
            "fetch.extract(Path(sys.argv[1]), Path(sys.argv[2]))\n")
    done = subprocess.run([sys.executable, "-c", code, str(archive), str(tmp_path / "out")],
                          env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert done.returncode == 9
    assert not (tmp_path / "out").exists() and len(list((tmp_path / "out.part").iterdir())) == 3
    assert len(list(extract(archive, tmp_path / "out").iterdir())) == 5
    assert not (tmp_path / "out.part").exists()
