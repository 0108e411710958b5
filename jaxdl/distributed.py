"""Several processes that train as one: the program is the same in each, and so is every decision.

They start together (`launch` on one machine, a cluster elsewhere), and end together. Process 0
leads: what depends on the disk, the clock or a signal is decided there, and told to the others over
a TCP connection that each of them keeps open to it. The same connection tells at once when a
process has died. Nothing of it takes part in a step: numbers travel between devices by XLA's own
collectives.

With one process every function here does nothing, or what is asked for at once.
"""

import collections
import contextlib
import ctypes
import functools
import hmac
import io
import json
import os
import queue
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import numpy as np

from jaxdl.errors import RunError, UserError, out_of_memory
from jaxdl.process import PREEMPTED, Early, Preempted

HEARTBEAT = 25  # seconds without a sign of life after which JAX gives a process up
SHUTDOWN = 30  # seconds that a process which is done waits for the others
START = 300  # seconds until all must have started
GRACE = 5.0  # seconds for a process that fails to close its files, and for news of why
NEWS = 10.0  # seconds for news of a process whose end broke a collective operation
LAUNCHER = "JAXDL_LAUNCHER"  # holds the id of the process that launched this one
KINDS = (UserError, RunError, ValueError, OSError)  # errors that the leader shares with the others

T = TypeVar("T")
_peers: "Peers | None" = None


def several() -> bool:
    """Whether this process is one of several."""
    return _peers is not None


def leads() -> bool:
    """Whether this process is the one that decides, writes and prints."""
    return _peers is None or _peers.rank == 0


def by_leader(function: Callable[[], T], channel: str = "main") -> T:
    """What `function` returns in process 0, in all of them: plain JSON. It runs nowhere else.

    A UserError, RunError, ValueError or OSError that it raises is raised everywhere.

    Args:
      function: what to run.
      channel: one for each thread that asks.
    """
    if _peers is None:
        return function()
    if _peers.rank > 0:
        kind, value = _peers.queue(channel).get()
        if kind:
            raise next(k for k in KINDS if k.__name__ == kind)(value)
        return value
    try:
        value = function()
    except KINDS as error:
        kind = next(k for k in KINDS if isinstance(error, k))
        _peers.tell({"value": [kind.__name__, str(error)], "channel": channel})
        raise
    _peers.tell({"value": ["", value], "channel": channel})
    return value


def leader_first(function: Callable[[], T]) -> T:
    """What `function` returns here, run in process 0 before the others: what it fetches is there
    for those on the same machine."""
    if not leads():
        barrier("main")
        return function()
    value = function()
    barrier("main")
    return value


def only_leader(method: Callable[..., None]) -> Callable[..., None]:
    """The method, which only process 0 runs, without the others waiting for it."""
    @functools.wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        if leads():
            method(*args, **kwargs)

    return wrapped


def barrier(channel: str) -> None:
    """Until all processes are here."""
    if _peers is None:
        return
    if _peers.rank > 0:
        _peers.tell({"arrived": channel})
    else:
        for _ in range(_peers.count - 1):
            _peers.queue(f"arrived at {channel}").get()
    by_leader(lambda: None, channel)


def same(values: Mapping[str, Any]) -> None:
    """Raises a UserError in a process whose values (plain JSON) are not those of process 0."""
    mine = json.loads(json.dumps(dict(values)))
    for name, value in by_leader(lambda: mine).items():
        if mine[name] != value:
            shown = [" ".join(str(x).split())[:200] for x in (mine[name], value)]
            raise UserError(f"{name} on {socket.gethostname()} is not that of process 0"
                            + (f": {shown[0]}, not {shown[1]}." if shown[0] != shown[1] else "."))


def leaving(name: str) -> str:
    """The name of the signal on which all processes leave at this very call, or "".

    All make the same calls, one after another. Once one has a signal, the calls that each has made
    are compared, and all leave at the next that none has made yet.

    Args:
      name: of a signal that came to this process, or "".
    """
    return name if _peers is None else _peers.poll(name)


# Arrays that all processes hold together.


def put(x: Any, sharding: Any) -> Any:
    """The array on the devices of a sharding, some of which may be those of other processes; these
    hold the same array."""
    import jax

    if not several():
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])


def rows(sharding: Any, size: int) -> np.ndarray | None:
    """Which of `size` rows the devices of this process hold, in order; None for all, where there is
    one process."""
    if not several():
        return None
    held = sharding.addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[index] for index in held]))


def assembled(tree: Any, sharding: Any, mine: np.ndarray | None, size: int, axis: int) -> Any:
    """Arrays of `size` rows on all devices, of which this process has its own.

    Args:
      tree: NumPy arrays.
      sharding: of the result.
      mine: the numbers of the rows that `tree` holds, in order; None for all.
      size: rows in all.
      axis: which axis counts rows.
    """
    import jax

    if mine is None:
        return tree  # The compiled step places it for less than a call of its own.

    def whole(x: np.ndarray) -> Any:
        def part(index: Any) -> np.ndarray:
            here = np.searchsorted(mine, np.arange(size)[index[axis]])
            return x[(*index[:axis], slice(here[0], here[-1] + 1))]

        return jax.make_array_from_callback((*x.shape[:axis], size, *x.shape[axis + 1:]), sharding,
                                            part)

    return jax.tree.map(whole, tree)


# One end for all.


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What is raised inside is told to the other processes before anything else is done: they end
    too, instead of waiting for this one. (To leave on a signal is agreed already.)"""
    try:
        yield
    except BaseException as error:
        agreed = isinstance(error, Preempted) and not isinstance(error, Early)
        if _peers is not None and not agreed:
            _peers.failed(error)
        raise


def give_up(text: str) -> None:
    """Prints an error and tells it to the other processes, from any thread; returns when they know.
    """
    if _peers is None:
        print(f"error: {text}", file=sys.stderr, flush=True)
    else:
        _peers.failed(RunError(text))
        time.sleep(1)  # Process 0 prints, and ends all, unless it is what is stuck.
        print(f"error: process {_peers.rank}: {text}", file=sys.stderr, flush=True)
        time.sleep(2 * GRACE)


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Inside, this process is one of those that were started together, if there are several.

    What fails in one ends all, with one line; a process that dies, too.
    """
    global _peers
    if _peers is None:
        _peers = start()
    if _peers is None:
        yield
        return
    try:
        with together():
            yield
    except BaseException as error:
        if isinstance(error, Preempted) and not isinstance(error, Early):
            _peers.finish()
            if _peers.rank > 0:
                raise SystemExit(PREEMPTED) from None
            raise
        _peers.end(error)
    _peers.finish()


# Starting.


def start() -> "Peers | None":
    """Joins the processes that the environment speaks of; None if it speaks of none, or of one.

    Before any device is touched. The environment is that of `launch`, of SLURM, Open MPI or a Cloud
    TPU pod, as JAX itself detects it, or JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID.
    """
    die_with_launcher()
    if not announced(os.environ):
        return None
    import jax
    from jax._src import clusters, distributed  # No public name gives the address, or a first word.

    # Its notifier of SIGTERM takes the signal from us.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if LAUNCHER in os.environ:  # No proxy stands between the processes of one machine.
        jax.config.update("jax_check_proxy_envs", False)
    given = os.environ.get("JAX_COORDINATOR_ADDRESS")
    count, rank = (number(os.environ, name) if name in os.environ else None
                   for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    local: Any = None
    if None in (given, count, rank):
        given, count, rank, local = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            given, count, rank, None, None, START)
    if given is None or count is None or rank is None:
        raise UserError("several processes were started, but JAX cannot tell how they find each "
                        "other: set JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and "
                        "JAX_PROCESS_ID.")
    if not re.fullmatch(r".+:\d{1,5}", given):
        raise UserError(f"JAX_COORDINATOR_ADDRESS={given} in the environment: expected HOST:PORT.")
    host, port = given.rsplit(":", 1)
    host = host.strip("[]")
    if rank == 0 and bindable(host) and not bindable(host, int(port)):  # JAX's server would crash.
        raise RunError(f"process 0 cannot listen at {given}: the port is in use.")
    _silence(rank)
    # JAX's own end of waiting is a page of C++ and an abort.
    late = threading.Timer(START, _nobody, (f"process {rank} of {count}", given))
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            given, count, rank, local, initialization_timeout=2 * START,
            heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN,
            coordinator_bind_address=os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or (
                given if bindable(host) else None))
    except (RuntimeError, ValueError) as error:
        raise RunError(f"process {rank} of {count} cannot join the others at {given}: "
                       f"{' '.join(str(error).split())[:200]}") from error
    try:
        peers = Peers(rank, count, host, distributed.global_state.client)
    except (RunError, OSError) as error:
        print(f"error: process {rank} of {count}: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # At a usual exit JAX would wait for the others.
    late.cancel()
    return peers


def announced(environment: Mapping[str, str]) -> bool:
    """Whether the environment speaks of several processes."""
    if "JAX_NUM_PROCESSES" in environment:
        return number(environment, "JAX_NUM_PROCESSES") > 1
    # A batch script itself, which no srun started, has SLURM_NTASKS but is one process.
    step = all(name in environment for name in (
        "SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"))
    return ((step and number(environment, "SLURM_NTASKS") > 1)
            or number(environment, "OMPI_COMM_WORLD_SIZE") > 1
            or "," in environment.get("TPU_WORKER_HOSTNAMES", ""))


def number(environment: Mapping[str, str], name: str) -> int:
    """The whole number in a variable, one if it is not set."""
    text = environment.get(name, "1")
    if not text.isdecimal():
        raise UserError(f"{name}={text} in the environment: expected a number.")
    return int(text)


def _nobody(name: str, address: str) -> NoReturn:
    print(f"error: {name}: the processes did not all come to {address} within {START} seconds.",
          file=sys.stderr, flush=True)
    os._exit(1)


def bindable(host: str, port: int = 0) -> bool:
    """Whether `host` is an interface of this machine, and the port free or only reserved."""
    try:
        # With the option that `launch` reserves a port with, and that JAX's server sets.
        with socket.create_server((host, port), family=_family(host), reuse_port=True):
            return True
    except OSError:
        return False


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _silence(rank: int) -> None:
    """Process 0 alone writes to the standard output; what Gloo prints there is heard from none."""
    stdout = sys.stdout
    if not isinstance(stdout, io.TextIOWrapper) or stdout.fileno() != 1:
        return
    stdout.flush()
    if rank == 0:
        sys.stdout = open(os.dup(1), "w", encoding=stdout.encoding,  # noqa: SIM115
                          errors=stdout.errors, buffering=1 if stdout.line_buffering else -1)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)


# While they run.


class Peers:
    """The processes of a run, as one of them sees the others.

    Args:
      rank: of this process; 0 leads.
      count: of processes.
      host: where process 0 listens.
      client: of JAX's coordination service, for the first word.
    """

    def __init__(self, rank: int, count: int, host: str, client: Any) -> None:
        self.rank, self.count = rank, count
        self._changed = threading.Condition()
        self._queues: dict[str, queue.SimpleQueue[Any]] = collections.defaultdict(queue.SimpleQueue)
        self._polls, self._stop, self._signal = 0, -1, ""  # see `poll`
        self._asked = False
        self._positions: dict[int, int] = {}
        self._failed: tuple[str, int] | None = None
        self._finished: set[int] = set()
        self._sending, self._exit = threading.Lock(), threading.Lock()
        self._links: dict[int, socket.socket] = {}
        if rank == 0:
            self._listen(host if bindable(host) else "", client)
        else:
            port, token = json.loads(client.blocking_key_value_get("jaxdl/leader", START * 1000))
            link = socket.create_connection((host, port), timeout=START)
            link.sendall(f"{token} {rank} {count}\n".encode())
            self._links[0] = link
        for peer, link in self._links.items():
            link.settimeout(None)
            for level, option, value in (
                    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
                    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),  # A machine that loses its power
                    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),  # says nothing.
                    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
                    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)):
                link.setsockopt(level, option, value)
            threading.Thread(target=self._listen_to, args=(peer, link), daemon=True,
                             name=f"process {peer}").start()

    def _listen(self, host: str, client: Any) -> None:
        token = secrets.token_hex(16)
        with socket.create_server((host, 0), family=_family(host)) as server:
            client.key_value_set("jaxdl/leader", json.dumps([server.getsockname()[1], token]))
            deadline = time.monotonic() + START
            while len(self._links) < self.count - 1:
                server.settimeout(max(deadline - time.monotonic(), 0.01))
                try:
                    link = server.accept()[0]
                except TimeoutError:
                    raise RunError(f"{len(self._links) + 1} of {self.count} processes came within "
                                   f"{START} seconds.") from None
                link.settimeout(10)
                with contextlib.suppress(OSError, ValueError):  # A stranger at the port.
                    said, peer, count = link.makefile("r").readline(100).split()
                    if not hmac.compare_digest(said, token):
                        continue
                    if int(count) != self.count:
                        raise RunError(f"process {peer} was told of {count} processes, process 0 "
                                       f"of {self.count}: JAX_NUM_PROCESSES must be the same.")
                    self._links[int(peer)] = link

    def queue(self, channel: str) -> queue.SimpleQueue[Any]:
        """What has come on a channel."""
        with self._changed:
            return self._queues[channel]

    def tell(self, message: Mapping[str, Any]) -> None:
        """To process 0; from there to all others."""
        line = json.dumps(message).encode() + b"\n"
        with self._sending:
            for link in self._links.values():
                with contextlib.suppress(OSError):  # `_listen_to` notices.
                    link.sendall(line)

    def _listen_to(self, peer: int, link: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):  # Reset, or torn by the end of the peer.
            for line in link.makefile("r"):
                self._hear(peer, json.loads(line))
        if peer not in self._finished:
            self._leave(f"error: process {peer} ended without a word (killed, or out of memory?), "
                        "so all end; what is committed is intact.", 1)

    def _hear(self, peer: int, message: dict[str, Any]) -> None:
        match message:
            case {"value": value, "channel": channel}:
                self.queue(channel).put(value)
            case {"arrived": channel}:
                self.queue(f"arrived at {channel}").put(peer)
            case {"signal": name}:
                self._ask(name)
            case {"where": True}:
                with self._changed:
                    self._asked = True
                    self.tell({"at": self._polls})
            case {"at": polls}:
                self._decide(peer, polls)
            case {"stop": stop, "name": name}:
                with self._changed:
                    self._stop, self._signal = stop, name
                    self._changed.notify_all()
            case {"failed": text, "status": status}:
                # Often the same mistake ends this process a moment later, and then it is not that
                # of one process.
                self._finished.add(peer)
                threading.Thread(target=self._hear_failure, args=(peer, text, status)).start()
            case {"end": status}:
                self._leave("", status)
            case {"finished": True}:
                self._finished.add(peer)

    # Leaving on a signal.

    def poll(self, name: str) -> str:
        """See `leaving`."""
        with self._changed:
            if name and not self._asked:
                if self.rank == 0:
                    self._ask(name)
                else:
                    self._asked = True
                    self.tell({"signal": name})
            self._changed.wait_for(lambda: not self._asked or self._stop >= 0)
            self._polls += 1
            return self._signal if 0 <= self._stop < self._polls else ""

    def _ask(self, name: str) -> None:
        with self._changed:
            if not self._asked:
                self._asked, self._signal, self._positions = True, name, {0: self._polls}
                self.tell({"where": True})

    def _decide(self, peer: int, polls: int) -> None:
        with self._changed:
            self._positions[peer] = polls
            if len(self._positions) == self.count:
                self._stop = max(self._positions.values())
                self.tell({"stop": self._stop, "name": self._signal})
                self._changed.notify_all()

    # Ending.

    def failed(self, error: BaseException) -> None:
        """Tells the others; GRACE seconds later all end, whatever this process still waits for."""
        if self._failed is not None or (isinstance(error, SystemExit) and not error.code):
            return
        import jax

        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
            time.sleep(NEWS)  # If a process has died, `_listen_to` ends this one meanwhile.
        with self._changed:
            self._failed = text, status = described(error)
            self._changed.notify_all()
        if self.rank:
            self.tell({"failed": text, "status": status})
        patience = GRACE if self.rank == 0 else 2 * GRACE  # Process 0 prints, if it can.
        timer = threading.Timer(patience, self._leave, (text, status))
        timer.daemon = True
        timer.start()

    def _hear_failure(self, peer: int, text: str, status: int) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._failed is not None, GRACE / 2):
                self._leave(f"process {peer}: {text}" if text else "", status)

    def end(self, error: BaseException) -> NoReturn:
        """Ends this process and the others, with one line (for what nobody expected, a traceback).
        """
        self.failed(error)
        if self._failed is None:  # SystemExit without an error, as after --help.
            self.finish()
            raise error
        if self.rank == 0:
            self._leave(*self._failed)
        while True:
            time.sleep(1)  # Until process 0 says so.

    def _leave(self, text: str, status: int) -> NoReturn:
        self._exit.acquire()  # For good: one reason is enough.
        if text:
            prefix = f"process {self.rank}: " if self.rank else ""
            print(prefix + text, file=sys.stderr, flush=True)
        if self.rank == 0:
            self.tell({"end": status})
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(status)  # Not to wait for the others where JAX does at exit.

    def finish(self) -> None:
        """Until all are done; from now on a process may end without the others."""
        barrier("end")
        self.released()
        self.tell({"finished": True})

    def released(self) -> None:
        """The end of another process does not count any more."""
        self._finished.update(range(self.count))


def described(error: BaseException) -> tuple[str, int]:
    """(what to print, exit status) of an error, as the command line has them."""
    if isinstance(error, KeyboardInterrupt):
        return "", 130
    if isinstance(error, SystemExit):
        return "", error.code if isinstance(error.code, int) else 1
    if isinstance(error, Preempted):
        return str(error), PREEMPTED
    error = out_of_memory(error) or error
    if isinstance(error, (UserError, RunError)):
        return f"error: {' '.join(str(error).split())}", 2 if isinstance(error, UserError) else 1
    return "".join(traceback.format_exception(error)).rstrip(), 1


# Several on one machine.


def launch(count: int, arguments: list[str]) -> int:
    """Runs this very command in `count` processes with these arguments; the worst exit status.

    They find each other on the loopback interface. GPUs are shared out evenly. A signal is passed
    on to all; none outlives this process.
    """
    shares = share(visible_gpus(os.environ), count)
    with socket.socket() as reserved:
        # JAX's server sets this option too, so that it can have the port that is kept here.
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        common = {
            **os.environ, LAUNCHER: str(os.getpid()), "JAX_NUM_PROCESSES": str(count),
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{reserved.getsockname()[1]}",
            "no_grpc_proxy": "127.0.0.1"}
        children: list[subprocess.Popen[bytes]] = []
        listeners: list[threading.Thread] = []

        def forward(number: int, frame: Any) -> None:
            for child in children:
                child.send_signal(number)

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        old = {number: signal.signal(number, forward) for number in numbers}
        try:
            for rank in range(count):
                # In a session of its own, so that Ctrl-C reaches it once: from here.
                child = subprocess.Popen(
                    [sys.executable, sys.argv[0], *arguments], stdin=subprocess.DEVNULL,
                    stderr=subprocess.PIPE if rank else None, start_new_session=True,
                    env={**common, "JAX_PROCESS_ID": str(rank)} | shares[rank])
                children.append(child)
                if rank:
                    listeners.append(threading.Thread(target=pass_on, args=(rank, child.stderr)))
                    listeners[-1].start()
            return wait_for(children)
        finally:
            for child in children:
                child.kill()
            for listener in listeners:
                listener.join()
            for number, handler in old.items():
                signal.signal(number, handler)


def pass_on(rank: int, stream: IO[bytes]) -> None:
    """Prints what a process says on its standard error, under its name.

    When process 0 dies, JAX prints a page and aborts the others; only our own line of it is left.
    """
    name, dying, told = f"process {rank}: ", False, False
    for line in stream:
        text = line.decode(errors="replace")
        dying = dying or re.match(r"[EF]\d{4} .* (coordination_service_agent.cc|client.h):", text
                                  ) is not None
        if text.startswith(name) or not dying:
            told = told or text.startswith(name)
            print(text if text.startswith(name) else name + text, end="", file=sys.stderr,
                  flush=True)
    if dying and not told:
        print(f"{name}error: process 0 does not answer, so all end; what is committed is intact.",
              file=sys.stderr, flush=True)


def wait_for(children: list["subprocess.Popen[bytes]"]) -> int:
    """The worst exit status. When one has failed, the others are given the time to find out."""
    statuses: dict[int, int] = {}
    deadline = None
    while len(statuses) < len(children):
        time.sleep(0.05)
        statuses |= {rank: child.returncode for rank, child in enumerate(children)
                     if child.poll() is not None}
        bad = {rank: status for rank, status in statuses.items() if status not in (0, PREEMPTED)}
        if bad and deadline is None:
            deadline = time.monotonic() + HEARTBEAT
        if deadline is not None and time.monotonic() > deadline:
            rank, status = next(iter(bad.items()))
            raise RunError(f"process {rank} ended with status {status}, and process " + ", ".join(
                str(r) for r in range(len(children)) if r not in statuses) + " did not end by "
                f"itself within {HEARTBEAT} seconds.")
    # One that a signal killed counts as failed.
    failures = [1 if status < 0 else status for status in statuses.values()]
    return max((s for s in failures if s not in (0, PREEMPTED)), default=max(failures))


def die_with_launcher() -> None:
    """A process that `launch` has started is killed by the kernel when its launcher dies."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG of <linux/prctl.h>
    if os.getppid() != int(launcher):  # It died before.
        os._exit(1)


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """What CUDA_VISIBLE_DEVICES names, or the numbers of all NVIDIA GPUs; none for JAX on CPU."""
    if environment.get("JAX_PLATFORMS") == "cpu":
        return []
    if "CUDA_VISIBLE_DEVICES" in environment:
        return [name for name in environment["CUDA_VISIBLE_DEVICES"].split(",") if name.strip()]
    return [str(i) for i, _ in enumerate(sorted(Path("/dev").glob("nvidia[0-9]*")))]


def share(gpus: list[str], count: int) -> list[dict[str, str]]:
    """The environment that gives each process its GPUs; empty where there are none."""
    if not gpus:
        return [{}] * count
    if len(gpus) % count:
        raise UserError(f"--processes={count} does not share out {len(gpus)} GPUs evenly; "
                        "1 process can use them all.")
    each = len(gpus) // count
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * each:(i + 1) * each])}
            for i in range(count)]
