"""Sweeps that are killed, and continued with the same command.

    python benchmarks/sweep_kills.py                                     # vmap and processes
    python benchmarks/sweep_kills.py --executors ray slurm --kills 5

For each executor, a sweep is trained straight through; then again, with SIGKILLs at random moments
of its life, each followed by the same command: half of them hit the command itself, and where it
has workers the others hit one of those. Each trial must be done once, and its log and its last
checkpoint must be those of the sweep that was left alone, to the bit. `--mutant` forgets at each
launch what the ledger held, as a sweep without one does: it must fail.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ["JAX_PLATFORMS"] = "cpu"

from rich.console import Console

from jaxdl.checkpoint import arrays, committed
from jaxdl.resume import metrics, same

ROOT = Path(__file__).parents[1]
console = Console(highlight=False, soft_wrap=True, markup=False)
RATES, SEEDS = 4, 2


def command(folder: Path, executor: str, workers: int) -> list[str]:
    rates = ",".join(str(1e-3 * (i + 1)) for i in range(RATES))
    extra = ["--slurm=cluster=local"] if executor == "slurm" else []
    return [sys.executable, str(ROOT / "launch.py"), "sweep", "--experiment=mlp_digits",
            f"--workdir={folder}", f"--executor={executor}", f"--workers={workers}",
            f"--over=optimizer.learning_rate.peak={rates}", f"--over=seed=0:{SEEDS}",
            "--steps=3000", "--save_every=200", "--evals.test.every=500", "--retries=100", *extra]


def start(folder: Path, executor: str, workers: int) -> subprocess.Popen[str]:
    with folder.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command(folder, executor, workers), cwd=folder.parent, stdout=log,
                                stderr=log, text=True, start_new_session=True)


def children(pid: int) -> list[int]:
    """The processes below one, but for Python's own resource tracker."""
    found, todo = [], [pid]
    while todo:
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError, IndexError):
                if int(path.read_text().rsplit(")", 1)[1].split()[1]) == todo[0]:
                    child = int(path.parent.name)
                    line = (path.parent / "cmdline").read_bytes()
                    todo.append(child)
                    if b"spawn_main" in line or b"submitit" in line or b"ray::" in line:
                        found.append(child)
        todo.pop(0)
    return found


def killed(folder: Path, executor: str, workers: int, kills: int, chance: random.Random,
           length: float, mutant: bool) -> tuple[int, int]:
    """(kills of the command, of a worker) until it has ended by itself."""
    counts = [0, 0]
    while True:
        process = start(folder, executor, workers)
        done = None
        while sum(counts) < kills:
            wait = chance.uniform(0.5, length)
            with contextlib.suppress(subprocess.TimeoutExpired):
                done = process.wait(wait)
                break
            below = children(process.pid) if executor != "vmap" and chance.random() < 0.5 else []
            if below:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(chance.choice(below), signal.SIGKILL)
                    counts[1] += 1
                continue
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            counts[0] += 1
            break
        else:
            done = process.wait()
        if done is not None:
            if done:
                raise RuntimeError(f"status {done}: see {folder.with_suffix('.log')}")
            return counts[0], counts[1]
        if mutant:
            with contextlib.suppress(sqlite3.Error):
                sqlite3.connect(folder / "ledger.sqlite").execute(
                    "UPDATE trial SET state = 'pending', group_ = NULL").connection.commit()
            shutil.rmtree(folder / "trials", ignore_errors=True)


def differences(straight: Path, folder: Path) -> list[str]:
    """What is not as in the sweep that was left alone."""
    rows = sqlite3.connect(folder / "ledger.sqlite").execute(
        "SELECT number, state FROM trial ORDER BY number").fetchall()
    found = [] if rows == [(i, "done") for i in range(RATES * SEEDS)] else [f"trials: {rows}"]
    for number in range(RATES * SEEDS):
        a, b = (place / "trials" / f"{number:04d}" for place in (straight, folder))
        if metrics(a) != metrics(b):
            found.append(f"trial {number}: another log")
        x, y = (arrays(p / "checkpoints", committed(p / "checkpoints")[-1]) for p in (a, b))
        if x.keys() != y.keys() or not all(same(x[k], y[k]) for k in x):
            found.append(f"trial {number}: another state")
        launches = json.loads((b / "environment.json").read_text())
        if any(launch["from_step"] >= 3000 for launch in launches):
            found.append(f"trial {number}: begun again after its end")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executors", nargs="+", default=["vmap", "processes"])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mutant", action="store_true")
    flags = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sweep-kills-"))
    bad = 0
    for executor in flags.executors:
        chance, straight = random.Random(flags.seed), folder / f"{executor}-straight"
        began = time.monotonic()
        if start(straight, executor, flags.workers).wait():
            raise RuntimeError(f"see {straight.with_suffix('.log')}")
        length = time.monotonic() - began
        total, wrong, sweeps = [0, 0], [], 0
        while sum(total) < flags.kills:
            again = folder / f"{executor}-{sweeps}"
            counts = killed(again, executor, flags.workers, flags.kills - sum(total), chance,
                            length, flags.mutant)
            total = [a + b for a, b in zip(total, counts, strict=True)]
            wrong += [f"{again}: {text}" for text in differences(straight, again)]
            sweeps += 1
        bad += len(wrong)
        console.print(f"{executor}: {total[0]} kills of the command and {total[1]} of a worker in "
                      f"{sweeps} sweeps of {RATES * SEEDS} trials ({length:.0f} s undisturbed): "
                      f"{len(wrong)} differences")
        for text in wrong[:10]:
            console.print(f"  {text}")
    if not bad:
        shutil.rmtree(folder)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
