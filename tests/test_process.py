"""The run as a process: one in a directory, leaving when asked to, never stuck for ever."""

import concurrent.futures
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxdl import train
from jaxdl.checkpoint import committed
from jaxdl.errors import UserError
from jaxdl.process import Early, Lock, Preempted, Signals, Watchdog, leaving_at_once
from tests.test_train import fit
from tests.tiny import shorter

ROOT = Path(__file__).parent.parent
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, timeout=60,
                          capture_output=True, env={**os.environ, **environment})


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_heard_at_the_next_poll(number: signal.Signals) -> None:
    old = signal.getsignal(number)
    with Signals() as signals:
        signals.begun = True
        signals.poll()
        os.kill(os.getpid(), number)
        with pytest.raises(Preempted, match=f"^{number.name}$"):
            signals.poll()
    assert signal.getsignal(number) is old


def test_what_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals, leaving_at_once():
            os.kill(os.getpid(), signal.SIGHUP)
            signals.poll()
            assert signals.name == ""
    finally:
        signal.signal(signal.SIGHUP, old)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_leaves_at_once(number: signal.Signals) -> None:
    done = python("import os\nfrom jaxdl.process import Signals\nwith Signals():\n"
                  f"    os.kill(os.getpid(), {int(number)}); os.kill(os.getpid(), 15)\n"
                  "    print('still here')")
    assert (done.returncode, done.stdout, done.stderr) == (128 + 15, "", "")


def test_the_grace_ends_a_save_that_takes_too_long() -> None:
    done = python("import os, time\nfrom jaxdl.process import Signals\nwith Signals(grace=0.2):\n"
                  "    os.kill(os.getpid(), 15); time.sleep(30)")
    assert done.returncode == 1
    assert done.stderr == ("error: SIGTERM: preempt_grace=0.2 seconds were not enough to save; "
                           "what is committed is intact.\n")


def test_a_signal_while_the_step_compiles_leaves_without_waiting(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(program: train.Program) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return concurrent.futures.Future()

    monkeypatch.setattr(train.Program, "compile", never)
    with pytest.raises(Early, match="SIGTERM: left before a step was trained"):
        fit(tmp_path, shorter())
    assert committed(tmp_path / "checkpoints") == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_within_an_import_it_ends_without_an_exception(tmp_path: Path, number: int,
                                                       status: int) -> None:
    (tmp_path / "slow.py").write_text(
        f"import os, signal\ntry:\n    os.kill(os.getpid(), {int(number)})\n"
        "    for _ in range(1000): pass\nfinally:\n    print('an exception passed')\n")
    code = "from jaxdl.process import leaving_at_once\nwith leaving_at_once():\n    import slow"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"{signal.Signals(number).name}: left before a step was trained")


def test_a_signal_before_there_is_anything_to_save() -> None:
    """Wherever the command stands, it ends with 75."""
    done = python("import os, sys\nfrom jaxdl import cli\n"
                  "cli.parse = lambda *a: os.kill(os.getpid(), 15)\n"
                  "sys.exit(cli.main(['--experiment=mlp_digits']))")
    assert (done.returncode, done.stderr) == (75, (
        "SIGTERM: left before a step was trained; the same command starts again where this one "
        "did\n"))


def test_a_signal_in_a_place_that_no_exception_leaves_is_not_lost(tmp_path: Path) -> None:
    """JAX runs code whenever garbage is collected, and Python drops what is raised in there."""
    done = python("import gc, os, sys\nfrom jaxdl import cli, data\nfrom jaxdl.data import digits\n"
                  "open_ = digits.Digits.open\n"
                  "def collected(phase, info): os.kill(os.getpid(), 15)\n"
                  "def open_in_garbage(self, split):\n"
                  "    gc.callbacks.append(collected); gc.collect(); gc.callbacks.clear()\n"
                  "    digits.Digits.open = open_\n"
                  "    return open_(self, split)\n"
                  "digits.Digits.open = open_in_garbage\n"
                  f"sys.exit(cli.main(['--experiment=mlp_digits', '--workdir={tmp_path}']))")
    assert done.returncode == 75 and "Exception ignored in" in done.stderr
    assert done.stderr.endswith("SIGTERM: left before a step was trained; the same command starts "
                                "again where this one did\n")


def test_a_run_without_progress_ends_and_says_where_it_stood() -> None:
    done = python("import time\nfrom jaxdl.distributed import give_up\n"
                  "from jaxdl.process import Watchdog\n"
                  "def the_place_where_it_waits(): time.sleep(60)\n"
                  "with Watchdog(0.4, give_up) as dog:\n"
                  "    dog.beat('evaluate', 1200); the_place_where_it_waits()")
    assert done.returncode == 1
    *stacks, last = done.stderr.splitlines()
    assert last == ("error: no progress for 0.4 seconds in evaluate at step 1,200; each thread "
                    "stood where it says above. What is committed is intact; --stuck_after sets "
                    "the limit.")
    assert any("the_place_where_it_waits" in line for line in stacks)


@pytest.mark.parametrize(("patience", "section", "beats", "ends"), [
    (20., "step", {15, 30, 45}, None), (20., "step", {15}, 35), (20., "start", set(), 20),
    (None, "start", set(), None), (None, "step", set(), 3600)])
def test_what_counts_as_no_progress(monkeypatch: pytest.MonkeyPatch, patience: float | None,
                                    section: str, beats: set[int], ends: int | None) -> None:
    """Seconds are those that the watching thread has lived through: a stopped process has none."""
    told: list[str] = []

    class Seconds:
        count = 0

        def wait(self, seconds: float) -> bool:
            assert seconds == 1
            self.count += 1
            if self.count - 1 in beats:
                dog.beat()
            return self.count - 1 == (ends or 50)

    def ended(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", ended)
    dog: Any = Watchdog(patience, told.append)
    dog._stopped = Seconds()
    dog.beat(section, 7)
    if ends is None:
        dog._watch()
        assert told == []
    else:
        dog._stopped.wait = lambda seconds, wait=dog._stopped.wait: wait(seconds) and False
        with pytest.raises(SystemExit):
            dog._watch()
        assert dog._stopped.count == ends
        assert told[0].startswith(f"no progress for {patience or 3600:g} seconds in {section} at ")


@pytest.mark.parametrize("flag", ["--preempt_grace=0", "--stuck_after=-1"])
def test_options_have_bounds(flag: str) -> None:
    from jaxdl.cli import parse

    with pytest.raises(UserError, match=re.escape(f"{flag}.0: expected float, between 0.1 and ")):
        parse("train", "mlp_digits", [flag])


def test_the_lock_names_its_holder_and_a_dead_one_is_gone(tmp_path: Path) -> None:
    code = ("import os, sys, time\nfrom pathlib import Path\nfrom jaxdl.process import Lock\n"
            f"lock = Lock(Path({str(tmp_path)!r})); print(os.getpid(), flush=True)\n"
            "time.sleep(60)")
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE,
                              text=True)
    assert holder.stdout is not None
    pid = int(holder.stdout.readline())
    with pytest.raises(UserError, match=rf"^{tmp_path} is in use by process {pid} on \S+ since "
                                        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.$"):
        Lock(tmp_path)
    holder.kill()
    holder.wait()
    Lock(tmp_path).release()
