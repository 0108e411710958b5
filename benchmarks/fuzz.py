"""Malformed command lines and records in, one line out: counted, and searched for tracebacks.

    PYTHONPATH=. python benchmarks/fuzz.py [--inputs=10000] [--seed=0] [--only=lines:7]

A valid command line, config.json, or other file of a run directory is changed in one or more
places and given to `jaxdl.cli.main`, in this process, up to the point where training would begin:
arguments are parsed, records read and rebuilt, data prepared, the run directory opened; `fit` and
the like are replaced by functions that do nothing. Each input must end

- with status 2 or 1 and exactly one line on stderr, "error: ...", or with status 0 (what was
  changed was valid all the same, or it asked for help),
- within 5 seconds,
- without running anything: values try to make a file in a dozen languages, and an audit hook sees
  each process, and each file that is opened for writing outside the folder of this run.

An input depends on the seed and its number alone; --only shows one in full.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAXDL_MALLOC", "default")
sys.dont_write_bytecode = True  # The import of a module is no writing of ours.

from rich.box import MARKDOWN  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from jaxdl import (  # noqa: E402
    checkpoint,
    cli,
    config,
    display,
    distributed,
    environment,
    files,
    record,
    resume,
    train,
)
from jaxdl.data import fetch  # noqa: E402
from jaxdl.errors import UserError  # noqa: E402

LIMIT = 5.0  # seconds
CANARY = "canary-of-the-fuzzer"
SHELL = f"touch {CANARY}"
PYTHON = f"__import__('os').system('{SHELL}')"

# What people and attackers type in place of a value.
VALUES = (
    "", " ", "None", "null", "true", "False", "1", "-1", "0", "-0", "+1", "1.", ".5", "1e3",
    "1_000", "1__0", "0x10", "0b1", "0o7", "1e999", "-1e999", "1e39", "nan", "NaN", "inf", "-inf",
    "Infinity", "9" * 30, "9" * 400, "9" * 5_000, "0." + "1" * 5_000, "١٢", "²", "½", "一", "1,2",
    "1,,2", ",", "(1, 2)", "[1]", "{}", "{1: 2}", "{[]: 1}", "()", "(((1,),),)", "(" * 3_000,
    "[" * 3_000, "-" * 3_000 + "1", "lambda: 0", "b'x'", "1j", "'x'", '"', "'", "\\", "\\x",
    "%s%n%d", "{0.__class__}", "{", "}", "{}{}", "[bold]x[/bold]", "[/x]", ":smile:", "a.b.c", ".",
    "..", "/", "~", "~nobody-here/x", "../../../../etc/passwd", "/etc/passwd", "/dev/null",
    "/dev/zero", "/proc/nothing/x", "x" * 300, "x/" * 3_000, "x" * 100_000, "a{9999999999}", "a**",
    "(?P<n>", "(?:" * 2_000, "\\9", "[", "(a+)+$", "é", "\U0001f600", "\ud800", "\udcff", "\x00",
    "a\x00b", "a\nb", "a\tb", "\r", "\x1b[2J\x1b]0;x\x07", "\u202e", "\ufeff", "e\u0301" * 50,
    "--steps=3", "--", "-", "=", "==", "a=b", "@file", "*", "?", "#", PYTHON,
    f"os.system('{SHELL}')", "os:system", "os.system", f"$({SHELL})", f"`{SHELL}`", f"; {SHELL}",
    f"| {SHELL}", f"&& {SHELL}", f"\n{SHELL}\n", f"!!python/object/apply:os.system ['{SHELL}']",
    f"!!python/name:os.system [{SHELL}]", f"{{{{ {PYTHON} }}}}", f"${{{PYTHON}}}", f"#{{{PYTHON}}}",
    f"exec({PYTHON!r})", f"cos\nsystem\n(S'{SHELL}'\ntR.", f"@{{{PYTHON}}}", f"%{{{PYTHON}}}")
# The same in JSON, beside these as strings.
PLAIN: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2 ** 31, 2 ** 64, -2 ** 64, 10 ** 400, 0.5, -0.5, 1e39, -1e300,
    1e-320, float("nan"), float("inf"), -float("inf"), [], [[]], [None], [1, "x"], {}, {"": 0},
    {"a.b": 1}, {"_": None}, {"_": 3}, {"_": ["os", "system"]}, {"_": {}}, [{}],
    [{"_": "os:system"}])
CLASSES = (
    "os:system", "os:popen", "posix:system", "subprocess:Popen", "builtins:eval", "builtins:exec",
    "builtins:__import__", "builtins:dict", "pickle:loads", "importlib:import_module", "sys:exit",
    "pathlib:Path", "antigravity:x", "this:x", "jaxdl:x", "jaxdl", ":", "", "x", ":x",
    "jaxdl.config", "jaxdl.config:", "jaxdl.config:Path", "jaxdl.config:Between",
    "jaxdl.config:from_json", "jaxdl.config:Leaf", "jaxdl.files:load", "jaxdl.cli:main",
    "jaxdl.cli:Command", "jaxdl.cli:os", "jaxdl.cli:os.system", "jaxdl.record:Run",
    "jaxdl.record:Recorded", "jaxdl.record:subprocess", "jaxdl.distributed:Peers",
    "jaxdl.process:Lock", "jaxdl.train:Program", "jaxdl.train:fit", "jaxdl.resume:Kill",
    "jaxdl.task:TrainState", "jaxdl.task:Mean", "jaxdl.experiment:Experiment",
    "jaxdl.experiment:Mesh", "jaxdl.experiment:InitFrom", "jaxdl.optimizer:SGD",
    "jaxdl.optimizer:Adam", "jaxdl.optimizer:Cosine", "jaxdl.data.digits:Digits",
    "jaxdl.data.idx:Idx", "jaxdl.data.tfds:Tfds", "jaxdl.data.folder:ImageFolder",
    "jaxdl.models.mlp:MLP", "jaxdl.models.mlp:nn", "jaxdl.nothing:X", "jaxdl..config:X", "jaxdl.:X",
    "jaxdl.config.x:X", "jaxdl/config:X", "jaxdl.\x00:X", "jaxdl.\ud800:X", "jaxdl.config:\ud800",
    "jaxdl.config:__class__", "jaxdl.config:Experiment.__init__", "jaxdl." * 500,
    "jaxdl.__main__:X", "jaxdl.data:X", "experiments.mlp_digits:config", "tests.tiny:MortalDigits")


@dataclass
class Outcome:
    """How one input ended.

    Attributes:
      kind: what was done to it.
      verdict: "refused", "accepted", or what is wrong.
      text: what was printed on stderr.
      seconds: how long it took.
    """

    kind: str
    verdict: str
    text: str
    seconds: float


class Hung(BaseException):
    """LIMIT is over."""


class Begun(Exception):
    """Here training would begin."""


# Command lines.

LETTERS = "abcdefghijklmnopqrstuvwxyz_.-=0123456789"
STRANGE = "é一\u0301\u200b\u202e\ufeff\U0001f600\ud800\udcff\x00\x07\x1b\n\t "
NUMBERS = ("{}", "-{}", "0.{}", "{}e{}", "0x{}", "{}_{}", "1e-{}", "{}.{}.{}", "--{}", "{}%", " {}",
           "{}L", "{}f", "1/{}", "{}**9")
WORDS = ("--", "-", "---", "--=", "--=x", "-x", "--x", "--no-steps", "--steps", "--experiment",
         "--experiment=", "--help=3", "--version", "+steps=3", "steps=3", "--steps:3", "-steps=3",
         "list", "show", "launch", "train")


def command_line(chance: random.Random, experiments: dict[str, Any]) -> list[str]:
    """A valid one."""
    name = chance.choice(sorted(experiments))
    mode = chance.choice(["show"] * 10 + ["train", "train", "evaluate", "verify-resume", "launch"])
    leaves = [(p, leaf.value) for p, leaf in config.leaves(experiments[name])
              if cli._is_plain(leaf.hint)]
    typed = [flag(path, value) for path, value in chance.sample(leaves, chance.randint(1, 3))]
    options = {"train": ["--workdir=runs/a", "--resume", "--strict_data", "--accept_changes",
                         "--sinks=tensorboard", "--profile=1:3", "--stuck_after=60"],
               "evaluate": ["--workdir=run", "--step=best", "--step=1"],
               "verify-resume": ["--kills=3", "--moments=1", "--workdir=runs/b"],
               "launch": ["--workdir=runs/c"], "show": [""]}[mode]
    start = {"train": chance.choice([[], ["train"]]), "launch": ["launch", "--processes=2"]}
    args = [*start.get(mode, [mode]), f"--experiment={name}", *typed, chance.choice(options)]
    return [token for arg in args if arg for token in (
        arg.split("=", 1) if chance.random() < .1 and "=" in arg else [arg])]


def flag(path: str, value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return f"--{path}={text}"


def with_value(args: list[str]) -> list[int]:
    """Where an argument has a value."""
    return [i for i, arg in enumerate(args) if "=" in arg] or list(range(len(args)))


def edited(chance: random.Random, text: str, alphabet: str = LETTERS) -> str:
    """The text with a character deleted, replaced, inserted, or swapped with the next one."""
    if not text:
        return chance.choice(alphabet)
    at = chance.randrange(len(text))
    return chance.choice([
        text[:at] + text[at + 1:], text[:at] + chance.choice(alphabet) + text[at + 1:],
        text[:at] + chance.choice(alphabet) + text[at:],
        text[:at] + text[at + 1:at + 2] + text[at:at + 1] + text[at + 2:]])


def edit_characters(chance: random.Random, args: list[str]) -> None:
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(args))
        args[at] = edited(chance, args[at])


def edit_unicode(chance: random.Random, args: list[str]) -> None:
    at = chance.randrange(len(args))
    args[at] = edited(chance, args[at], STRANGE)


def another_value(chance: random.Random, args: list[str]) -> None:
    at = chance.choice(with_value(args))
    args[at] = f"{args[at].partition('=')[0]}={chance.choice(VALUES)}"


def another_values_key(chance: random.Random, args: list[str]) -> None:
    i, j = chance.choice(with_value(args)), chance.choice(with_value(args))
    (a, _, x), (b, _, y) = args[i].partition("="), args[j].partition("=")
    args[i], args[j] = f"{a}={y}", f"{b}={x}"


def random_number(chance: random.Random, args: list[str]) -> None:
    at = chance.choice(with_value(args))
    digits = "".join(chance.choices("0123456789", k=chance.randint(1, 40)))
    number = chance.choice(NUMBERS).replace("{}", digits)
    args[at] = f"{args[at].partition('=')[0]}={number}"


def missing_value(chance: random.Random, args: list[str]) -> None:
    at = chance.choice(with_value(args))
    args[at] = args[at].partition("=")[0] + chance.choice(["", "="])


def very_long(chance: random.Random, args: list[str]) -> None:
    at = chance.randrange(len(args))
    args[at] += chance.choice("a0/.,=-[{(\\") * chance.choice([255, 5_000, 200_000])


def repeated(chance: random.Random, args: list[str]) -> None:
    args.insert(chance.randrange(len(args) + 1), chance.choice(args))


def deleted(chance: random.Random, args: list[str]) -> None:
    del args[chance.randrange(len(args))]


def shuffled(chance: random.Random, args: list[str]) -> None:
    chance.shuffle(args)


def inserted(chance: random.Random, args: list[str]) -> None:
    args.insert(chance.randrange(len(args) + 1), chance.choice([*VALUES, *WORDS]))


def dashes(chance: random.Random, args: list[str]) -> None:
    at = chance.randrange(len(args))
    bare = args[at].lstrip("-")
    start = chance.choice(["-", "", "---", "--no-", "--no_", "-- ", "—", "--.", "--data."])
    args[at] = start + bare


def asked_for_help(chance: random.Random, args: list[str]) -> None:
    edit_characters(chance, args)
    args.append(chance.choice(["--help", "-h"]))


LINES: dict[str, tuple[Callable[[random.Random, list[str]], None], int]] = {
    "characters edited": (edit_characters, 8), "unicode and control characters": (edit_unicode, 3),
    "a value of another kind": (another_value, 12), "values exchanged": (another_values_key, 2),
    "a random number": (random_number, 4), "a value missing": (missing_value, 2),
    "very long": (very_long, 2), "an argument repeated": (repeated, 2),
    "an argument missing": (deleted, 2), "arguments shuffled": (shuffled, 2),
    "a word inserted": (inserted, 4), "other dashes": (dashes, 2),
    "help asked for": (asked_for_help, 1)}


# Records.


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON value something can be changed."""
    if path:
        yield path
    if isinstance(node, (dict, list)):
        for key, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from places(child, (*path, key))


def parent(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        data = data[key]
    return data


def value_changed(chance: random.Random, data: dict[str, Any]) -> Any:
    path = chance.choice(list(places(data)))
    parent(data, path)[path[-1]] = chance.choice([*PLAIN, *VALUES])
    return data


def class_changed(chance: random.Random, data: dict[str, Any]) -> Any:
    path = chance.choice([p for p in places(data) if p[-1] == "_"])
    parent(data, path)[path[-1]] = chance.choice([*CLASSES, *VALUES[:40]])
    return data


def node_changed(chance: random.Random, data: dict[str, Any]) -> Any:
    """An object in place of anything, with the fields of what it replaces or without."""
    path = chance.choice(list(places(data["experiment"])))
    above = parent(data["experiment"], path)
    old = above[path[-1]]
    above[path[-1]] = {**(old if isinstance(old, dict) and chance.random() < .5 else {}),
                       "_": chance.choice(CLASSES)}
    return data


def name_changed(chance: random.Random, data: dict[str, Any]) -> Any:
    path = chance.choice([p for p in places(data) if isinstance(p[-1], str)])
    above = parent(data, path)
    name = chance.choice([edited(chance, path[-1]), chance.choice(VALUES)])
    above[name] = above.pop(path[-1])
    return data


def part_missing(chance: random.Random, data: dict[str, Any]) -> Any:
    path = chance.choice(list(places(data)))
    del parent(data, path)[path[-1]]
    return data


def parts_exchanged(chance: random.Random, data: dict[str, Any]) -> Any:
    a, b = (chance.choice(list(places(data["experiment"]))) for _ in range(2))
    above, below = parent(data["experiment"], a), parent(data["experiment"], b)
    above[a[-1]], below[b[-1]] = (json.loads(json.dumps(x)) for x in (below[b[-1]], above[a[-1]]))
    return data


def header_changed(chance: random.Random, data: dict[str, Any]) -> Any:
    key = chance.choice(sorted(data))
    data[key] = chance.choice([*PLAIN, *VALUES])
    return data


def nested(chance: random.Random, data: dict[str, Any]) -> str:
    """A thousand levels, or a hundred thousand."""
    path = chance.choice(list(places(data)))
    parent(data, path)[path[-1]] = "HERE"
    depth, (left, right) = chance.choice([50, 150, 900, 3_000, 100_000]), chance.choice(
        [("[", "]"), ('{"a":', "}"), ('{"_":', "}"), ('[{"x":', "}]")])
    return json.dumps(data).replace('"HERE"', left * depth + "1" + right * depth)


def written_twice(chance: random.Random, data: dict[str, Any]) -> str:
    """A name twice in one object, and other forms that no JSON writer makes."""
    text = json.dumps(data)
    at = chance.choice([i for i, c in enumerate(text) if c in "{[,:"]) + 1
    return text[:at] + chance.choice([
        '"_": "os:system",', '"steps": 3,', '"seed": 1,"seed": 2,', "NaN,", "Infinity,", "// x\n",
        "/* x */", "'x':1,", "\ufeff", "\x00", ",", "0x1,", "1_0,", "True,", "undefined,",
        '"\\ud800",', '"\\u0000":1,', '"a" "b",', "--1,", "1e9999,", "9" * 5_000 + ","]) + text[at:]


RECORDS: dict[str, tuple[Callable[[random.Random, dict[str, Any]], Any], int]] = {
    "a value changed": (value_changed, 6), "a class changed": (class_changed, 4),
    "an object of another class": (node_changed, 4), "a name changed": (name_changed, 3),
    "a part missing": (part_missing, 2), "parts exchanged": (parts_exchanged, 2),
    "the header changed": (header_changed, 2), "nested deeply": (nested, 1),
    "no JSON that we write": (written_twice, 2)}


# Bytes of files.

METRICS = "".join(json.dumps({"step": step, "train/loss": 1 / (step + 1)}) + "\n"
                  for step in range(8))


def flipped(chance: random.Random, data: bytes) -> bytes:
    found = bytearray(data)
    for _ in range(chance.choice([1, 1, 1, 2, 8])):
        found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    return bytes(found)


def cut(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data))
    return data[:at] if chance.random() < .5 else data[:at] + data[at + chance.randint(1, 50):]


def put_in(chance: random.Random, data: bytes) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.randbytes(chance.choice([1, 2, 8, 64])) + data[at:]


def doubled(chance: random.Random, data: bytes) -> bytes:
    a, b = sorted(chance.randrange(len(data)) for _ in range(2))
    return data[:b] + data[a:b] * chance.randint(1, 3) + data[b:]


def noise(chance: random.Random, data: bytes) -> bytes:
    return chance.randbytes(chance.choice([0, 1, 100, 5_000]))


BYTES: dict[str, Callable[[random.Random, bytes], bytes]] = {
    "flipped": flipped, "cut": cut, "inserted": put_in, "doubled": doubled, "random": noise}


# The harness.


class Fuzzer:
    """A folder with a small run of each kind, in which inputs are tried.

    Args:
      folder: where all is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.work = self.folder / "a" / "b" / "c"  # "../x" stays inside of `folder`.
        self.work.mkdir(parents=True)
        self.experiments = {name: files.build(files.load(path))
                            for name, path in files.experiments().items()}
        self.written: list[str] = []
        self.watching = False
        platform.platform()  # It asks "uname", once.
        sys.addaudithook(self.audit)

    def audit(self, event: str, values: tuple[Any, ...]) -> None:
        """Notes what runs a program, and what writes outside of the folder."""
        if not self.watching:
            return
        if event in ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
                     "subprocess.Popen", "pickle.find_class"):
            self.written.append(f"{event} {values!r}")
        elif event == "open" and isinstance(values[2], int) and values[2] & (
                os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            self.check(event, values[0])
        elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink",
                       "os.truncate", "os.chmod", "shutil.rmtree"):
            self.check(event, *[v for v in values if isinstance(v, (str, bytes))])

    def check(self, event: str, *paths: Any) -> None:
        for path in paths:
            if isinstance(path, int) or os.fsdecode(path) == os.devnull:
                continue
            full = os.path.normpath(os.path.join(os.getcwd(), os.fsdecode(path)))
            if not full.startswith(f"{self.folder}/"):
                self.written.append(f"{event} {full}")

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Nothing trains, waits for a network, or ends the process."""
        def begun(experiment: Any, run: record.Run, **options: Any) -> None:
            with contextlib.closing(run):
                run.start(1, [])

        def inside(folder: Path, *args: Any, **options: Any) -> record.Run:
            if not Path(os.path.normpath(folder.absolute())).is_relative_to(self.folder):
                raise Begun  # The user's own wish; not on this machine.
            return opened(folder, *args, **options)

        def nothing(*args: Any, **options: Any) -> Any:
            raise Begun

        opened = record.Run
        changes = [(train, "fit", begun), (train, "evaluate", nothing),
                   (resume, "shortened", nothing), (distributed, "launch", nothing),
                   (record, "Run", inside),
                   (fetch, "reachable", lambda url: False),
                   (environment, "_git", lambda *args: None),
                   (cli, "Watchdog", lambda *args: contextlib.nullcontext())]
        old = [(where, name, getattr(where, name)) for where, name, _ in changes]
        folder, variables = os.getcwd(), dict(os.environ)
        os.environ |= {"JAXDL_DATA": str(self.folder / "data"), "HOME": str(self.folder / "home"),
                       "TFDS_DATA_DIR": str(self.folder / "tfds")}
        try:
            for where, name, value in changes:
                setattr(where, name, value)
            os.chdir(self.work)
            yield
        finally:
            os.chdir(folder)
            for where, name, value in old:
                setattr(where, name, value)
            os.environ.clear()
            os.environ |= variables

    def recorded(self, name: str) -> dict[str, Any]:
        """A config.json as plain JSON."""
        return {"format": 1, "jaxdl": "0.1.0", "name": name, "stand_in": None,
                "fingerprint": "0" * 16, "expected": "98 %",
                "experiment": config.to_json(self.experiments[name])}

    def run_folder(self, name: str, text: str | bytes) -> Path:
        """A run directory with this config.json, and a checkpoint in name."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "checkpoints" / "1.json").touch()
        data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        (folder / "config.json").write_bytes(data)
        return folder

    def tried(self, kind: str, function: Callable[[], int]) -> Outcome:
        """Calls the function as the command would be called."""
        def late(number: int, frame: Any) -> None:
            raise Hung

        out, err = io.StringIO(), io.StringIO()
        self.written.clear()
        begin = time.perf_counter()
        old = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, LIMIT)
        self.watching = True
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), printing_to(out):
                status: Any = function()
        except SystemExit as stop:
            status = stop.code or 0
            if status:
                err.write(f"SystemExit({stop.code!r})")
        except Begun:
            status = 0
        except Hung:
            status = "hung"
        except BaseException:
            status, text = "traceback", traceback.format_exc()
            err.write(text)
        finally:
            self.watching = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        seconds, text = time.perf_counter() - begin, err.getvalue()
        if self.written:
            verdict, text = "wrote or ran", "; ".join(self.written)
        elif any(path.name == CANARY for path in self.work.iterdir()):
            verdict = "executed"
        elif isinstance(status, str):
            verdict = status
        elif status == 0:
            verdict = "accepted" if not text else "accepted, but printed"
        elif text.startswith("error: ") and text[-1] == "\n" and text[:-1].isprintable():
            verdict = "refused"
        else:
            verdict = "not one line"
        return Outcome(kind, verdict, text, seconds)

    # One input of each campaign.

    def line(self, chance: random.Random) -> Outcome:
        args = command_line(chance, self.experiments)
        kinds = chance.choices(list(LINES), [weight for _, weight in LINES.values()],
                               k=1 if chance.random() < .8 else 2)
        for kind in kinds:
            LINES[kind][0](chance, args)
            args = args or [""]
        self.shown = args
        return self.tried(f"line: {kinds[0]}", lambda: cli.main(args))

    def record(self, chance: random.Random) -> Outcome:
        data = self.recorded(chance.choice(sorted(self.experiments)))
        kind = chance.choices(list(RECORDS), [weight for _, weight in RECORDS.values()])[0]
        data = RECORDS[kind][0](chance, data)
        text = data if isinstance(data, str) else json.dumps(data)
        self.run_folder("run", text)
        args = chance.choice([["show", "--experiment=run"]] * 4 + [
            ["--experiment=run"], ["--experiment=mlp_digits", "--workdir=run"],
            ["--experiment=mlp_digits", "--workdir=run", "--accept_changes"],
            ["evaluate", "--experiment=run"],
            ["evaluate", "--experiment=mlp_digits", "--workdir=run"],
            ["show", "--experiment=run", "--steps=3"]])
        self.shown = [*args, text]
        return self.tried(f"record: {kind}", lambda: cli.main(args))

    def file(self, chance: random.Random) -> Outcome:
        """A file of a run directory with other bytes."""
        which = chance.choice(["config.json", "metrics.jsonl", "environment.json", "manifest"])
        how = chance.choice(list(BYTES))
        kind = f"bytes of {which}: {how}"
        if which == "manifest":
            return self.manifest(chance, how, kind)
        config_text = json.dumps(self.recorded("mlp_digits"), indent=1).encode()
        folder = self.run_folder("run", config_text)
        whole = {"config.json": config_text, "metrics.jsonl": METRICS.encode(),
                 "environment.json": json.dumps([{"from_step": 0, "command": []}]).encode()}
        for name, content in whole.items():
            (folder / name).write_bytes(content)
        (folder / which).write_bytes(BYTES[how](chance, whole[which]))
        args = ["--experiment=mlp_digits", "--workdir=run", "--accept_changes"]
        if which == "config.json" and chance.random() < .5:
            args = ["show", "--experiment=run"]
        self.shown = [*args, (folder / which).read_bytes()]
        return self.tried(kind, lambda: cli.main(args))

    def manifest(self, chance: random.Random, how: str, kind: str) -> Outcome:
        """Only what says what it said may be accepted."""
        folder = self.folder / "checkpoints"
        if not folder.exists():
            import jax.numpy as jnp

            checkpoints = checkpoint.Checkpoints(folder)
            checkpoints.save(1, {"state": {"params": {"x": jnp.arange(8.)}}},
                             {"progress": {"best_step": None}})
            checkpoints.close()
            (folder / "1.json").rename(folder / "whole")
        whole = (folder / "whole").read_bytes()
        (folder / "1.json").write_bytes(BYTES[how](chance, whole))
        self.shown = [(folder / "1.json").read_bytes()]

        def verified() -> int:
            checkpoint.best_step(folder, 1)
            try:
                found = checkpoint.verify(folder, 1)
            except (ValueError, UserError) as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            assert found == {k: v for k, v in json.loads(whole).items() if k != "sha256"}
            return 0

        return self.tried(kind, verified)

    def input(self, seed: int, number: int, campaign: str) -> Outcome:
        chance = random.Random(f"{seed} {campaign} {number}")
        return {"lines": self.line, "records": self.record, "files": self.file}[campaign](chance)


@contextlib.contextmanager
def printing_to(out: io.StringIO) -> Iterator[None]:
    """Rich keeps the stream that it was made with."""
    old = display.console.file
    display.console.file = out
    try:
        yield
    finally:
        display.console.file = old


def campaign_of(number: int) -> str:
    """Seven command lines in ten, then records, of the inputs that --inputs counts."""
    return "records" if number % 10 >= 7 else "lines"


def run(folder: Path, seed: int, inputs: int, of_files: int) -> list[Outcome]:
    """The outcome of every input; what is wrong is printed at once."""
    fuzzer, outcomes = Fuzzer(folder), []
    plan = [(i, campaign_of(i)) for i in range(inputs)] + [(i, "files") for i in range(of_files)]
    with fuzzer.installed():
        for number, campaign in plan:
            outcome = fuzzer.input(seed, number, campaign)
            outcomes.append(outcome)
            if outcome.verdict not in ("refused", "accepted"):
                print(f"{campaign}:{number}: {outcome.verdict}: {outcome.kind}: "
                      f"{[str(a)[:200] for a in fuzzer.shown]}: {outcome.text[-600:]!r}",
                      flush=True)
    return outcomes


def table(outcomes: Sequence[Outcome]) -> Table:
    result = Table("inputs", "number", "refused in one line", "accepted (valid by chance)",
                   "tracebacks, hung, ran, wrote, not one line", "longest, s", box=MARKDOWN)
    groups = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.kind].append(outcome)
    groups = {**dict(sorted(groups.items())), "all": list(outcomes)}
    for kind, members in groups.items():
        found = Counter(o.verdict for o in members)
        good = found["refused"], found["accepted"]
        result.add_row(kind, f"{len(members):,}", *(f"{n:,}" for n in good),
                       f"{len(members) - sum(good):,}", f"{max(o.seconds for o in members):.2f}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="command lines and records")
    parser.add_argument("--files", type=int, default=4_000, help="files with other bytes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="lines|records|files:NUMBER",
                        help="this input alone, shown in full")
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if flags.only:
            campaign, _, number = flags.only.partition(":")
            fuzzer = Fuzzer(Path(folder))
            with fuzzer.installed():
                outcome = fuzzer.input(flags.seed, int(number), campaign)
            print(*fuzzer.shown, outcome.kind, outcome.verdict, outcome.text, sep="\n")
            return
        outcomes = run(Path(folder), flags.seed, flags.inputs, flags.files)
    Console(width=160).print(table(outcomes))
    sys.exit(any(o.verdict not in ("refused", "accepted") for o in outcomes))


if __name__ == "__main__":
    main()
