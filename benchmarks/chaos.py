"""What `kills.py` kills: training processes forked from one that has imported everything, on small
experiments; with parts of the state planted to be lost; and processes that only save, with jaxdl's
checkpoints and with plain Orbax's.

The process that forks must not have touched a device: then a fork costs milliseconds, where an
interpreter and its imports cost seconds. What needs a device runs in a fork of its own.
"""

import contextlib
import ctypes
import errno
import functools
import json
import math
import os
import platform
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, ClassVar

sys.path.insert(0, str(Path(__file__).parents[1]))
import flax.linen as nn
import jax
import numpy as np
import optax
import orbax.checkpoint as orbax

from jaxdl import checkpoint, cli, display, record, train
from jaxdl.data.digits import Digits
from jaxdl.data.source import Arrays, Records, Source
from jaxdl.data.transforms import PadCrop
from jaxdl.errors import RunError, UserError
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Best, Experiment, Mesh
from jaxdl.models.cnn import CNN
from jaxdl.models.mlp import MLP
from jaxdl.models.rnn import RNN
from jaxdl.optimizer import SGD, Adam, AdamW, Cosine, StepDecay
from jaxdl.task import Aux, Batch, LossTask, Mean
from jaxdl.tasks.classification import Classification

PRELOADED = ("grain", "tyro", "docstring_parser", "tensorboardX")  # which jaxdl imports when needed
EXPERIMENT = "KILLED_EXPERIMENT"  # names the one that config() returns
LICENSE = Path(__file__).parents[1] / "LICENSE"
PATIENCE = 60.0  # seconds after which a process that should end is called hung


# Processes.


class Forked:
    """A process forked from this one, in a group of its own; as far as `resume` needs it, a
    `subprocess.Popen`.

    Args:
      body: what it does; its result is the exit status.
      environment: what to add to the environment.
      log: the file that its output goes to.
    """

    def __init__(self, body: Callable[[], int], environment: Mapping[str, str],
                 log: IO[str]) -> None:
        self.returncode: int | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.setpgid(0, 0)
                ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # It dies with its parent.
                if os.getppid() != parent:
                    os._exit(1)
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                os.environ.update(environment)
                display.console.quiet = False
                status = body()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        try:
            os.setpgid(self.pid, self.pid)  # Whoever is first: a kill of the group must not miss.
        except (PermissionError, ProcessLookupError):
            return

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        """It and all that it has started."""
        if self.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
        self.wait()


def preload() -> None:
    """Imports what a run will, and starts no backend."""
    for name in PRELOADED:
        __import__(name)


def forked(arguments: list[str], environment: Mapping[str, str], log: IO[str],
           plant: Callable[[], None] | None = None) -> Forked:
    """The command, forked; a `resume.Start`.

    Args:
      arguments: of the command line.
      environment: what to add to the environment.
      log: the file that its output goes to.
      plant: called first, in the new process.
    """
    def body() -> int:
        if plant is not None:
            plant()
        return cli.main(arguments)

    return Forked(body, environment, log)


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a fork, plain JSON: this process stays without a backend."""
    reading, writing = os.pipe()

    def body() -> int:
        with open(writing, "w") as file:
            json.dump(function(*arguments), file)
        return 0

    child = Forked(body, {}, sys.stderr)
    os.close(writing)
    with open(reading) as file:
        text = file.read()
    if child.wait():
        raise RunError(f"{getattr(function, '__name__', function)} failed in a process of its own.")
    return json.loads(text)


# Experiments: small, so that a kill costs little; together they have all that a run can lose.


@dataclass(frozen=True, kw_only=True)
class HostDigits(Digits):
    """The digits, read on the host by Grain's threads unless `in_memory`."""

    in_memory: bool = False

    def open(self, split: str) -> Source:
        source: Any = super().open(split)
        if self.in_memory:
            return source
        rows = [{name: x[i] for name, x in source.arrays.items()} for i in range(source.size)]
        return Records(examples=rows, transforms=source.transforms)


@dataclass(frozen=True, kw_only=True)
class License:
    """The bytes of this project's license in windows: every tenth is for "test".

    Attributes:
      length: bytes in a window.
    """

    length: int = 16

    stand_in: ClassVar[None] = None

    def prepare(self) -> None:
        """The file comes with the source."""

    def open(self, split: str) -> Source:
        text = np.frombuffer(LICENSE.read_bytes(), np.uint8).astype(np.int32)
        count = (len(text) - 1) // self.length
        windows = np.stack([text[i * self.length:(i + 1) * self.length + 1] for i in range(count)])
        test = np.arange(count) % 10 == 0
        windows = windows[test if split == "test" else ~test]
        return Arrays(arrays={"tokens": windows[:, :-1], "next": windows[:, 1:]})

    def fingerprint(self) -> str:
        return f"license-{LICENSE.stat().st_size}-{self.length}"


@dataclass(frozen=True, kw_only=True)
class NextByte(LossTask):
    """Mean cross-entropy of the next byte."""

    model: nn.Module

    def loss(self, variables: dict[str, Any], batch: Batch, key: jax.Array, *,
             train: bool) -> tuple[Mean, Aux]:
        logits, mutable = self.apply(self.model, variables, batch["tokens"], key=key, train=train)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["next"])  # [B, T]
        return Mean.of(losses.mean(-1), batch["mask"]), Aux(mutable=mutable)


def mlp() -> Experiment:
    """Batch norm, dropout, an average, augmentation, warm-up and cosine, clipping, a best one."""
    return Experiment(
        task=Classification(model=MLP(widths=(32,), batch_norm=True, dropout=0.2), ema=0.95),
        data=HostDigits(size=8, channels=1, augment=(PadCrop(pad=1),), in_memory=True),
        optimizer=Adam(learning_rate=Cosine(peak=1e-2, warmup=0.1), weight_decay=1e-3, clip=1.0),
        evals={"test": Evaluate(every=8), "fit": Evaluate(split="train", every=12)},
        best=Best(metric="test/accuracy"),
        steps=60, batch_size=64, log_every=3, save_every=5, mesh=Mesh(data=1))


def cnn() -> Experiment:
    """Read on the host; batch norm, dropout, augmentation, steps of the rate, momentum, two
    micro-batches; one checkpoint kept."""
    return Experiment(
        task=Classification(model=CNN(channels=(4,), dense=(16,), batch_norm=True, dropout=0.2),
                            accumulate=2),
        data=HostDigits(size=8, channels=1, augment=(PadCrop(pad=1),)),
        optimizer=SGD(learning_rate=StepDecay(peak=0.05), momentum=0.9, weight_decay=1e-4),
        evals={"test": Evaluate(every=10, batch_size=359)},
        steps=60, batch_size=32, log_every=4, save_every=5, keep=1, mesh=Mesh(data=1))


def lstm() -> Experiment:
    """Text; dropout, an average, AdamW and cosine."""
    return Experiment(
        task=NextByte(model=RNN(vocabulary=128, width=16, embedding=8, dropout=0.1), ema=0.9),
        data=License(), optimizer=AdamW(learning_rate=Cosine(peak=1e-2)),
        evals={"test": Evaluate(every=9)},
        steps=60, batch_size=32, log_every=5, save_every=4, keep=3, mesh=Mesh(data=1))


EXPERIMENTS: dict[str, Callable[[], Experiment]] = {"mlp": mlp, "cnn": cnn, "lstm": lstm}


def config() -> Experiment:
    """The one that the environment names."""
    return EXPERIMENTS[os.environ.get(EXPERIMENT, "mlp")]()


# Mutants: a part of the checkpoint that is lost when it is read. Each must be found.


def lost(part: str) -> None:
    """From here on, a restored run has this part of the carry as a fresh one has it."""
    begin = train.Fit.begin

    def begun(fit: Any) -> tuple[int, Any]:
        step, carry = begin(fit)
        if not step:
            return step, carry
        floats, seed = fit.program.knobs
        # A key is the same in each fresh run of a seed; one that is not kept is another one.
        fresh = fit.program.init((floats, seed + 1) if part == "key" else fit.program.knobs)
        if part == "window":
            return step, replace(carry, window=fresh.window)
        state = replace(carry.state, **{part: getattr(fresh.state, part)})
        return step, replace(carry, state=state)

    train.Fit.begin = begun


def kept_log() -> None:
    """From here on, nothing that was logged after the restored step is dropped."""
    record._until = lambda text, step, repeated: text.splitlines(keepends=True)


# What is lost -> what does it, and where the comparison must find it.
MUTANTS: dict[str, tuple[Callable[[], None], str]] = {
    "random key": (functools.partial(lost, "key"), "random keys"),
    "average": (functools.partial(lost, "ema"), "average of parameters"),
    "optimizer": (functools.partial(lost, "opt_state"), "optimizer"),
    "position": (functools.partial(lost, "seen"), "examples of each step"),
    "statistics": (functools.partial(lost, "mutable"), "statistics"),
    "step": (functools.partial(lost, "step"), "position"),
    "sums of the log": (functools.partial(lost, "window"), "lines of the log"),
    "end of the log": (kept_log, "lines of the log"),
}


# Processes that only save. What they save is a function of the step, so that anybody can check it.


def contents(step: int) -> dict[str, np.ndarray]:
    """The arrays of a step; those of the next are the sum of these and of one more."""
    base = [np.random.default_rng(i).integers(0, 1 << 32, (64, 64), np.uint32) for i in range(8)]
    return {f"w{i}": x + np.uint32(step * (2 * i + 1)) for i, x in enumerate(base)}


def loss(step: int) -> float:
    """What ranks the steps, where the best one is kept."""
    return float(np.random.default_rng(step).random())


class Jaxdl:
    """jaxdl's checkpoints."""

    def __init__(self, folder: Path, keep: int, best: bool) -> None:
        self.folder, self.best = folder, best
        self.store = checkpoint.Checkpoints(folder, keep)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        self.target = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here)
                       for name, x in contents(0).items()}

    def listed(self) -> list[int]:
        return self.store.steps()

    def restore(self, step: int) -> Any:
        return checkpoint.load(self.folder, step, self.target)[0]

    def newest(self) -> int:
        """As a run finds it: verified, and passed over if it is not intact."""
        found = self.store.restore(self.target)
        if found is None:
            return 0
        state, meta, skipped = found
        if skipped or not same(state, meta["step"]):
            raise RunError(f"passed over: {skipped}")
        return meta["step"]

    def save(self, step: int) -> None:
        best = min(range(1, step + 1), key=loss) if self.best else None
        self.store.save(step, jax.device_put(contents(step)),
                        {"step": step, "progress": {"best_step": best}}, best=best)

    def wait(self) -> None:
        self.store.wait()

    def close(self) -> None:
        self.store.close()


class Orbax:
    """Orbax's manager by itself, as its documentation has it."""

    def __init__(self, folder: Path, keep: int, best: bool) -> None:
        self.folder = folder
        ranked: dict[str, Any] = {"best_fn": lambda m: m["loss"], "best_mode": "min"}
        self.store = orbax.CheckpointManager(folder, options=orbax.CheckpointManagerOptions(
            max_to_keep=keep, **(ranked if best else {})))

    def listed(self) -> list[int]:
        return sorted(self.store.all_steps())

    def restore(self, step: int) -> Any:
        return self.store.restore(step, args=orbax.args.StandardRestore(
            jax.tree.map(orbax.utils.to_shape_dtype_struct, jax.device_put(contents(0)))))

    def newest(self) -> int:
        """The newest that can be read; what cannot be is removed, as a user would have to."""
        for step in reversed(self.listed()):
            if intact(self, step):
                return step
            shutil.rmtree(self.folder / str(step))
            self.store.reload()
        return 0

    def save(self, step: int) -> None:
        self.store.save(step, args=orbax.args.StandardSave(jax.device_put(contents(step))),
                        metrics={"loss": loss(step)})

    def wait(self) -> None:
        self.store.wait_until_finished()

    def close(self) -> None:
        self.store.close()


# Name -> (kind, how many are kept, whether the best is).
SAVERS: dict[str, tuple[type, int, bool]] = {
    "jaxdl, newest kept": (Jaxdl, 3, False), "jaxdl, newest and best kept": (Jaxdl, 1, True),
    "jaxdl, one kept": (Jaxdl, 1, False), "Orbax, newest kept": (Orbax, 3, False),
    "Orbax, best kept": (Orbax, 1, True), "Orbax, one kept": (Orbax, 1, False)}


def lost(name: str, confirmed: set[int], readable: set[int]) -> int:
    """How many of the newest and the best of the steps that were confirmed, whichever are kept, are
    neither there nor outdone by one that was committed as its process died."""
    _, _, best = SAVERS[name]
    missing = 0
    if confirmed and (not best or name.startswith("jaxdl")):
        missing += max(readable, default=0) < max(confirmed)
    if confirmed and best:
        missing += min(map(loss, readable), default=math.inf) > min(map(loss, confirmed))
    return missing


def opened(name: str, folder: Path) -> Any:
    kind, keep, best = SAVERS[name]
    return kind(folder, keep, best)


def same(state: Any, step: int) -> bool:
    """Whether these are the bits of a step."""
    wanted = contents(step)
    return state.keys() == wanted.keys() and all(
        np.asarray(x).tobytes() == wanted[name].tobytes() for name, x in state.items())


def intact(store: Any, step: int) -> bool:
    """Whether a step that is listed is what was saved."""
    try:
        return same(store.restore(step), step)
    except Exception:  # Orbax raises anything at all on a damaged checkpoint.
        return False


def all_inspected(name: str, folders: list[str], further: int = 0) -> list[dict[str, Any]]:
    """`inspected`, of several folders."""
    return [inspected(name, folder, further) for folder in folders]


def inspected(name: str, folder: str, further: int = 0) -> dict[str, Any]:
    """What a process finds when it opens a folder, and whether it can go on from there.

    Args:
      name: of SAVERS.
      folder: where they are.
      further: steps to save then.

    Returns:
      the steps that are "listed", those of them that are "broken", the one that it went on "from",
      and the "error" that kept it from going on, if one did.
    """
    found: dict[str, Any] = {"listed": [], "broken": [], "from": 0, "error": None}
    try:
        store = opened(name, Path(folder))
        found["listed"] = store.listed()
        found["broken"] = [step for step in found["listed"] if not intact(store, step)]
        found["from"] = store.newest()
        for step in range(found["from"] + 1, found["from"] + 1 + further):
            store.save(step)
            store.wait()
        if further and not intact(store, found["from"] + further):
            found["error"] = "what was saved then is not what was read back"
        store.close()
    except Exception as error:  # Whatever it is: it is reported.
        found["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return found


def save_on(name: str, folder: Path, report: Path) -> int:
    """Inspects a folder, then saves step after step until it is killed, and reports both."""
    with report.open("a") as file:
        def tell(**facts: Any) -> None:
            file.write(json.dumps({**facts, "time": time.time()}) + "\n")
            file.flush()

        store = opened(name, folder)
        listed = store.listed()
        broken = [step for step in listed if not intact(store, step)]
        step = store.newest()
        tell(listed=listed, broken=broken, newest=step)
        while True:
            step += 1
            store.save(step)
            tell(accepted=step)
            store.wait()
            tell(confirmed=step)


def save_once(name: str, folder: Path, step: int, ready: Callable[[], None]) -> int:
    """Saves one step where `ready` lets it, and says what goes wrong in one line; the status."""
    try:
        store = opened(name, folder)
        ready()
        try:
            store.save(step)
            store.wait()
        finally:
            store.close()
    except (RunError, UserError, OSError) as error:  # `fit` makes a RunError of an OSError.
        print("error: " + " ".join(str(error).split()), flush=True)
        return 1
    return 0


# Every call that a process makes to the file system below a folder, and what befalls one of them.
# strace can inject the same, but counts the calls of each thread by itself, and Orbax has dozens.

# x86-64: number -> (name, whether it names a file by descriptor, path, or folder and path).
CALLS = {
    257: ("openat", "at"), 2: ("open", "path"), 83: ("mkdir", "path"), 258: ("mkdirat", "at"),
    1: ("write", "fd"), 20: ("writev", "fd"), 18: ("pwrite64", "fd"), 296: ("pwritev", "fd"),
    74: ("fsync", "fd"), 75: ("fdatasync", "fd"), 77: ("ftruncate", "fd"), 76: ("truncate", "path"),
    82: ("rename", "path"), 264: ("renameat", "at"), 316: ("renameat2", "at"),
    87: ("unlink", "path"), 263: ("unlinkat", "at"), 84: ("rmdir", "path"),
    280: ("utimensat", "at"), 86: ("link", "path"), 265: ("linkat", "at"),
    88: ("symlink", "path"), 266: ("symlinkat", "at"), 0: ("read", "fd"), 17: ("pread64", "fd"),
    217: ("getdents64", "fd")}
READS = {"read", "pread64", "getdents64"}
X86_64 = 0xC000003E  # AUDIT_ARCH_X86_64 of <linux/audit.h>
# Of <sys/ptrace.h> and <linux/ptrace.h>.
POKEUSER, SYSCALL, SEIZE, INTERRUPT, LISTEN = 6, 24, 0x4206, 0x4207, 0x4208
GET_SYSCALL_INFO = 0x420e
OPTIONS = 1 | 2 | 4 | 8 | 1 << 20  # SYSGOOD, FORK, VFORK, CLONE, EXITKILL
ORIG_RAX, RAX = 15 * 8, 10 * 8
WALL = 1 << 30


class SyscallInfo(ctypes.Structure):
    """struct ptrace_syscall_info."""

    _fields_: ClassVar = [
        ("op", ctypes.c_uint8), ("pad", ctypes.c_uint8 * 3), ("arch", ctypes.c_uint32),
        ("instruction", ctypes.c_uint64), ("stack", ctypes.c_uint64),
        ("number", ctypes.c_int64), ("arguments", ctypes.c_uint64 * 6)]  # number: result at exit


_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def ptrace(request: int, thread: int, address: int = 0, data: Any = 0) -> None:
    """Raises an OSError, a ProcessLookupError if the thread is gone."""
    if _ptrace(request, thread, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"ptrace {request:#x}")


@dataclass(frozen=True)
class Call:
    """A call to the file system: its name and its path below the folder."""

    name: str
    path: str


def path_of(thread: int, kind: str, arguments: Any) -> str:
    """The path that a call names, absolute where the process has it so."""
    def text(address: int) -> str:
        found = b""
        with open(f"/proc/{thread}/mem", "rb", buffering=0) as memory:
            while b"\0" not in found and len(found) < 4096:
                memory.seek(address + len(found))
                found += memory.read(4096 - (address + len(found)) % 4096)  # to the page's end
        return os.fsdecode(found.split(b"\0")[0])

    def descriptor(number: int) -> str:
        number = ctypes.c_int32(number).value
        where = f"/proc/{thread}/cwd" if number == -100 else f"/proc/{thread}/fd/{number}"
        try:
            return os.readlink(where)
        except OSError:
            return ""

    if kind == "fd":
        return descriptor(arguments[0])
    if kind == "path":
        return text(arguments[0])
    return os.path.join(descriptor(arguments[0]), text(arguments[1]) if arguments[1] else "")


def traced(pid: int, folder: Path, begin: Callable[[], None],
           befall: Callable[[int], int | None], names: set[str]) -> tuple[int, list[Call]]:
    """(exit status, calls) of a child of this process, from `begin` on.

    Args:
      pid: of the child.
      folder: whose calls count.
      begin: lets the child go on.
      befall: of the number of calls before this one: None lets it happen, 0 kills the process
        instead, another number is the error that it ends with.
      names: of the calls that count.

    A process that hangs is killed: its status is then -SIGALRM.
    """
    seized: set[int] = set()
    while new := {int(t) for t in os.listdir(f"/proc/{pid}/task")} - seized:
        for thread in new:
            with contextlib.suppress(ProcessLookupError):  # ended meanwhile
                ptrace(SEIZE, thread, 0, OPTIONS)
                ptrace(INTERRUPT, thread)
                seized.add(thread)
    calls: list[Call] = []
    inside: dict[int, int] = {}  # thread -> error of the call that it is in, 0 for none
    info, hung = SyscallInfo(), False

    def expired(*_: object) -> None:
        nonlocal hung
        hung = True
        os.kill(pid, signal.SIGKILL)

    def entered(thread: int) -> None:
        known = CALLS.get(info.number)
        if info.arch != X86_64 or known is None or known[0] not in names:
            return
        name, kind = known
        path = path_of(thread, kind, info.arguments)
        if not Path(path).is_relative_to(folder):
            return
        error = befall(len(calls))
        calls.append(Call(name, os.path.relpath(path, folder)))
        if error == 0:
            os.kill(pid, signal.SIGKILL)  # The call that it stands before does not happen any more.
        elif error is not None:
            ptrace(POKEUSER, thread, ORIG_RAX, ctypes.c_void_p(-1))  # no call at all
            inside[thread] = error

    def stopped(thread: int, status: int) -> None:
        number, event, resume, pass_on = os.WSTOPSIG(status), status >> 16, SYSCALL, 0
        if number == signal.SIGTRAP | 0x80:
            ptrace(GET_SYSCALL_INFO, thread, ctypes.sizeof(info), ctypes.addressof(info))
            if info.op == 1:
                entered(thread)
            elif info.op == 2 and (error := inside.pop(thread, None)):
                ptrace(POKEUSER, thread, RAX, ctypes.c_void_p(-error))
        elif event == 128:  # PTRACE_EVENT_STOP: it begins to be traced, or the group is stopped
            if number in (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU):
                resume = LISTEN
        elif not event:
            pass_on = number
        ptrace(resume, thread, 0, pass_on)

    old = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    started = False
    try:
        while True:
            thread, status = os.waitpid(-1, WALL)
            if os.WIFSTOPPED(status):
                with contextlib.suppress(ProcessLookupError):  # killed meanwhile
                    stopped(thread, status)
            elif thread == pid:
                return -signal.SIGALRM if hung else os.waitstatus_to_exitcode(status), calls
            seized.discard(thread)
            if not started and not seized:  # Each thread is followed, or has ended.
                started = True
                begin()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def once(name: str, folder: Path, log: Path, point: int,
         error: int) -> tuple[int, list[Call], str]:
    """(exit status, calls, last line that tells of an error) of a process that saves step 2 to a
    folder that holds step 1, with a fault at one of its calls from there on.

    Args:
      name: of SAVERS.
      folder: where it saves.
      log: takes its output.
      point: how many calls come before the one with the fault.
      error: the number of the error; 0 kills the process.
    """
    (here, ready), (wait, go) = os.pipe(), os.pipe()

    def stop() -> None:
        os.write(ready, b".")
        os.read(wait, 1)

    def begin() -> None:
        os.write(go, b".")

    # A read changes nothing, and does not fail for want of space.
    names = {name for name, _ in CALLS.values()} - (READS if error in (0, errno.ENOSPC) else set())
    with log.open("w") as file:
        child = Forked(functools.partial(save_once, name, folder, 2, stop), {}, file)
        os.read(here, 1)
        child.returncode, calls = traced(
            child.pid, folder, begin, lambda n: error if n == point else None, names)
    for descriptor in (here, ready, wait, go):
        os.close(descriptor)
    told = [line for line in log.read_text(errors="replace").splitlines()
            if line.startswith("error: ")]  # Threads of Orbax may complain of their end after it.
    return child.returncode, calls, told[-1] if told else ""


def untraceable() -> str:
    """Why the calls of a child cannot be followed here; "" if they can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"written for Linux on x86-64, not {sys.platform} on {platform.machine()}"
    child = Forked(lambda: time.sleep(PATIENCE) or 0, {}, sys.stderr)
    try:
        ptrace(SEIZE, child.pid, 0, OPTIONS)
    except OSError as error:
        return f"ptrace is not permitted ({error.strerror})"
    finally:
        child.kill()
    return ""
