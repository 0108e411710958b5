"""From the typed command to the end of the first training step, and the commands that only print.

    python benchmarks/start.py [--runs=5]

The job is ResNet-18, batch 128, images of 32 x 32 x 3, on random data that takes no time to read.
Times are of whole processes, by the clock outside: from their start to the line that they print
when the first step is done (jaxdl: an evaluator at step 1, which waits for the state), or to their
end. "cold" begins with an empty folder of compiled programs, "warm" is the next run with the same
folder; Python's own byte code is always there. Beside it the same job as a plain Linen script,
which records nothing and writes nothing; in the warm run it uses JAX's cache as well.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from contest import alone
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
ROOT = HERE.parent
LAUNCH = [sys.executable, str(ROOT / "launch.py")]
PRIORITY = {False: (), True: ("chrt", "-r", "5")}
DONE = "first step done"
GOALS = {"jaxdl, first step, cold": "10", "jaxdl, first step, warm": "3 (2)"}


def lines(command: list[str], lock: Path | None,
          **environment: str) -> tuple[list[tuple[float, str]], float]:
    """([(seconds, line) of what it prints], seconds to its end, or to the first step)."""
    with alone(lock):
        return watch(command, environment)


def watch(command: list[str], environment: dict[str, str]) -> tuple[list[tuple[float, str]], float]:
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1", **environment})
    assert process.stdout is not None
    found = []
    for line in process.stdout:
        found.append((time.perf_counter() - began, line.rstrip()))
        if line.startswith(DONE):
            process.kill()  # the rest of the run is not of interest
            break
    process.wait()
    return found, time.perf_counter() - began if DONE not in found[-1][1] else found[-1][0]


def phases(found: list[tuple[float, str]]) -> str:
    """Where the time went, by the lines that jaxdl prints, or as the Linen script says."""
    if not found[-1][1].startswith(DONE):
        return f"{len(found)} lines"
    if ":" in found[-1][1]:
        return found[-1][1].split(": ")[1]
    recorded = next((t for t, line in found if " in " in line), 0.)
    compiled = next((t for t, line in found if line.startswith("compiled in")), recorded)
    return (f"imports, arguments, record {recorded:.2f}, compile {compiled - recorded:.2f}, step "
            f"{found[-1][0] - compiled:.2f}")


def first_step(name: str, folder: Path, number: int,
               flags: argparse.Namespace) -> dict[str, tuple[float, str]]:
    """One cold run and the warm one after it."""
    times = {}
    cache = folder / f"{name.replace(' ', '_')}{number}"
    for state in ("cold", "warm"):
        command = ([*LAUNCH, f"--experiment={HERE / 'workloads.py'}",
                    f"--workdir={cache}-{state}"] if name == "jaxdl"
                   else [sys.executable, str(HERE / "peers/first_step.py")])
        found, seconds = lines([*PRIORITY[flags.chrt], *command], flags.lock,
                               JAX_COMPILATION_CACHE_DIR=str(cache))
        if not found[-1][1].startswith(DONE):
            sys.exit(f"{name} did not get to its first step: {found[-1][1]}")
        times[f"{name}, first step, {state}"] = seconds, phases(found)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--chrt", action="store_true",
                        help="real-time class SCHED_RR for what is timed (needs root)")
    parser.add_argument("--lock", type=Path, help="file to lock during a process")
    flags = parser.parse_args()
    commands = {
        "python -c 'import jax'": [sys.executable, "-c", "import jax; print()"],
        "launch.py list": [*LAUNCH, "list"],
        "launch.py --help": [*LAUNCH, "--help"],
        "launch.py --experiment=resnet_cifar --help": [
            *LAUNCH, "--experiment=resnet_cifar", "--help"],
        "a misspelt experiment": [*LAUNCH, "--experiment=resnet_cifra"],
        "a misspelt flag": [*LAUNCH, "--experiment=resnet_cifar", "--optimiser.momentum=0.8"]}
    times: dict[str, list[tuple[float, str]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(flags.runs):
            for name in ("jaxdl", "Linen"):
                for key, value in first_step(name, Path(folder), number,
                                             flags).items():
                    times.setdefault(key, []).append(value)
            for name, command in commands.items():
                found, seconds = lines([*PRIORITY[flags.chrt], *command], flags.lock)
                times.setdefault(name, []).append((seconds, phases(found)))
    table = Table("", "median, s", "least - most", "phases of the median run, s",
                  "goal (moonshot), s", box=MARKDOWN)
    for name, runs in times.items():
        ordered = sorted(runs)
        middle = ordered[len(ordered) // 2]
        table.add_row(name, f"{np.median([s for s, _ in runs]):.2f}",
                      f"{ordered[0][0]:.2f} - {ordered[-1][0]:.2f}", middle[1],
                      GOALS.get(name, ""))
    Console(width=180).print(table)
    print(f"{flags.runs} runs; Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
