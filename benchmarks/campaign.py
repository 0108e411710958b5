"""What the campaigns share: their figures, and processes that start at once.

The process that runs a campaign has imported everything, and holds no device and no second thread.
A training process is a fork of it, which saves the second or more that the imports take.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress

from jaxdl import cli

HERE = Path(__file__).parent
FAULTY = HERE / "faulty.py"
console = Console(highlight=False, soft_wrap=True, markup=False)
T = TypeVar("T")


class Skip(Exception):
    """What a campaign needs is not permitted here."""


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
      row: of the fault table.
      what: was done.
      ours: what jaxdl came to.
      good: whether that is as it should be.
      beside: what plain Orbax, Grain or JAX, or a planted mistake, came to.
      caught: whether that one failed, as it must; None if there is nothing beside.
    """

    row: str
    what: str
    ours: str
    good: bool
    beside: str = ""
    caught: bool | None = None


@dataclass
class Campaign:
    """What a campaign is given.

    Attributes:
      folder: an empty one of its own, on disk.
      memory: another, in memory where that is possible.
      count: how often it shall do what it does.
      short: whether what stands beside is short, too.
      seed: of all that is random.
    """

    folder: Path
    memory: Path
    count: int
    short: bool
    seed: int = 0
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """A line that stays on the screen, and below the table."""
        console.print(f"  {text}")
        self.notes.append(text)


def ticked(items: Iterable[T], text: str, total: int | None = None) -> Iterator[T]:
    """The items, with a bar on a terminal and else a line at the end. Without a thread: to fork
    beside one is to risk a lock that nobody frees."""
    items = list(items) if total is None else items
    began = time.monotonic()
    with Progress(console=console, auto_refresh=False, transient=True,
                  disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=total if total is not None else len(items))
        progress.refresh()
        for item in items:
            yield item
            progress.advance(task)
            progress.refresh()
    console.print(f"  {text}: {time.monotonic() - began:.0f} s")


# Processes.


@dataclass
class Child:
    """A fork, which leads a process group of its own."""

    pid: int
    out: Path
    err: Path
    status: int | None = None

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self, seconds: float = 300) -> int:
        """The exit status; one that takes longer is killed."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"process {self.pid} had not ended after {seconds} s")
            time.sleep(0.005)
        assert self.status is not None
        return self.status

    def kill(self) -> None:
        """With all of its group."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.wait()


def fork(function: Callable[..., Any], *arguments: Any, log: Path | None = None,
         environment: Mapping[str, str] | None = None) -> Child:
    """Runs the function in a process of its own, whose exit status it returns.

    Args:
      function: what to run.
      arguments: of it.
      log: LOG.out and LOG.err take what it prints; None leaves it on this terminal.
      environment: changes.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    out, err = ((log.with_suffix(s) for s in (".out", ".err")) if log else (Path(), Path()))
    pid = os.fork()
    if pid:
        with contextlib.suppress(OSError):  # The child does so too: whoever comes first.
            os.setpgid(pid, pid)
        return Child(pid, out, err)
    status = 70
    try:
        os.setpgid(0, 0)
        os.environ.update(environment or {})
        if log:
            for path, number in ((out, 1), (err, 2)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        status = function(*arguments) or 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def forked(function: Callable[..., T], *arguments: Any, log: Path | None = None,
           environment: Mapping[str, str] | None = None, seconds: float = 3600) -> T:
    """What the function returns in a process of its own: plain JSON."""
    with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
        def run() -> None:
            Path(file.name).write_text(json.dumps(function(*arguments)))

        child = fork(run, log=log, environment=environment)
        try:
            status = child.wait(seconds)
        finally:
            child.kill()
        if status:
            raise RuntimeError(f"{function.__name__} ended with status {status}"
                               + (f": {child.err.read_text()[-2000:]}" if log else ""))
        return json.loads(file.read())


def command(*arguments: str) -> int:
    return cli.main(list(arguments))


def train(folder: Path, *arguments: str, log: Path | None = None,
          environment: Mapping[str, str] | None = None,
          call: Callable[..., int] = command) -> Child:
    """The command that trains `faulty.py` into a folder, in a fork."""
    return fork(call, "train", f"--experiment={FAULTY}", f"--workdir={folder}", "--mesh.data=1",
                *arguments, log=log or folder.with_suffix(".log"), environment=environment)


def trained(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Child:
    """The same, to its end, which must be good."""
    child = train(folder, *arguments, environment=environment)
    if child.wait():
        raise RuntimeError(f"{folder}: status {child.status}: {child.err.read_text()[-2000:]}")
    return child


# Looking at processes.


def alive(pid: int) -> bool:
    """Whether a process runs, or is stopped; one that has ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (OSError, IndexError):
        return False


def tagged(tag: str) -> list[int]:
    """The processes in whose environment the tag stands."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if tag.encode() in path.read_bytes() and alive(int(path.parent.name)):
                found.append(int(path.parent.name))
    return found


def listening(pids: Iterable[int]) -> set[str]:
    """The addresses on which these processes listen for TCP, as "127.0.0.1" or "::1"."""
    inodes = set()
    for pid in pids:
        for path in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                if (name := os.readlink(path)).startswith("socket:["):
                    inodes.add(name[8:-1])
    found = set()
    for version in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{version}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(address(fields[1].split(":")[0]))
    return found


def address(text: str) -> str:
    """An address of /proc/net/tcp, which writes words of four bytes in the machine's order."""
    import ipaddress

    words = [int(text[i:i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(text), 8)]
    found = ipaddress.ip_address(b"".join(words))
    return str(getattr(found, "ipv4_mapped", None) or found)


def memory_folder(prefix: str) -> Path:
    """An empty folder in memory if there is such a place, else on disk."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix=prefix, dir=place))


def emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
