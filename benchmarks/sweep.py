"""Sweeps: trial-steps a second for so many trials, and whole sweeps from the command to the end.

    python benchmarks/sweep.py [--workloads mlp16 mlp128 cnn lstm] [--trials 1 4 8 16 32] [--chrt]
    python benchmarks/sweep.py --whole          # 16 trials of the MLP, 2,000 steps each
    python benchmarks/sweep.py --search         # TPE against random trials on mlp_digits

Contenders are interleaved as in `train.py`: jaxdl with all trials in one step (vmap) and one after
another with one compiled step, plain JAX both ways, PyTorch in one process. What separate processes
take is a matter of the whole: `--whole` times commands, start and end included.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from contest import arguments, chosen, compete, console, interpreters, interval, machine
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
WORKLOADS = {"mlp16": ("mlp_sweep", 16), "mlp128": ("mlp_sweep", 128), "cnn": ("cnn_sweep", 128),
             "lstm": ("lstm_sweep", 64)}
CONTENDERS = {"jaxdl vmap": ("with_jaxdl.py", "--form=vmap"),
              "jaxdl sequential": ("with_jaxdl.py", "--form=sequential"),
              "jax vmap": ("with_jax.py", "--vmap"), "jax sequential": ("with_jax.py",),
              "torch": ("with_torch.py",)}
WHOLE, STEPS = 16, 2_000


def steps_table(flags: object, workloads: list[str], trials: list[int]) -> None:
    pythons = interpreters(flags, chosen(flags, list(CONTENDERS)))  # type: ignore[arg-type]
    table = Table("workload", "trials", *chosen(flags, list(CONTENDERS)),  # type: ignore[arg-type]
                  "vmap / sequential", "jaxdl's faster / PyTorch", box=MARKDOWN)
    everything = []
    for name in workloads:
        workload, batch = WORKLOADS[name]
        for count in trials:
            os.environ |= {"BENCHMARK_TRIALS": str(count), "BENCHMARK_BATCH": str(batch)}
            names = chosen(flags, list(CONTENDERS))  # type: ignore[arg-type]
            with open(os.devnull, "w") as nowhere:
                found = compete(workload, {n: CONTENDERS[n] for n in names}, pythons,
                                flags, nowhere)  # type: ignore[arg-type]
            everything += found
            seconds = {r.name: r.seconds for r in found}
            row = [f"{count / np.median(seconds[n]):,.0f}" if n in seconds else "failed"
                   for n in names]
            pairs = [("jaxdl sequential", "jaxdl vmap")]
            ours = min((n for n in seconds if n.startswith("jaxdl")),
                       key=lambda n: np.median(seconds[n]), default=None)
            pairs += [("torch", ours)]
            for slow, fast in pairs:
                if slow in seconds and fast in seconds:
                    ratios = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
                    row.append("{:.2f} ({:.2f} - {:.2f})".format(*interval(ratios)))
                else:
                    row.append("")
            table.add_row(name, str(count), *row)
            console.print(f"{name}, {count} trials: {' | '.join(row)}", markup=False)
    Console(width=220).print(table)
    console.print(machine(everything), markup=False)


def timed(*command: str, environment: dict[str, str] | None = None) -> float:
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, **(environment or {})})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-1000:]}")
    return time.monotonic() - began


def whole_table(flags: object, rounds: int) -> None:
    """Whole sweeps of the MLP with batch 128 and 16, each command in a fresh process."""
    torch = interpreters(flags, ["torch"])["torch"]  # type: ignore[arg-type]
    table = Table("batch", "sweep, vmap", "sweep, sequential", "sweep, auto",
                  f"{WHOLE} runs of jaxdl", "PyTorch, one process", f"{WHOLE} runs of PyTorch",
                  box=MARKDOWN)
    rates = [float(x) for x in np.linspace(0.001, 0.1, WHOLE)]
    for batch in (128, 16):
        found: dict[str, list[float]] = {}
        for _ in range(rounds):
            environment = {"WORKLOAD": "mlp", "BENCHMARK_BATCH": str(batch)}
            base = [sys.executable, "launch.py"]
            leaves = [f"--experiment={ROOT / 'benchmarks/workloads.py'}", f"--steps={STEPS}"]
            for executor in ("vmap", "sequential", "auto"):
                with tempfile.TemporaryDirectory() as folder:
                    found.setdefault(executor, []).append(timed(
                        *base, "sweep", *leaves, f"--workdir={folder}/sweep",
                        f"--executor={executor}",
                        "--over=optimizer.learning_rate.peak=" + ",".join(map(str, rates)),
                        environment=environment))
            with tempfile.TemporaryDirectory() as folder:
                found.setdefault("runs", []).append(sum(timed(
                    *base, *leaves, f"--workdir={folder}/{i}",
                    f"--optimizer.learning_rate.peak={rate}", environment=environment)
                    for i, rate in enumerate(rates)))
            worker = str(ROOT / "benchmarks/peers/with_torch.py")
            code = f"printf '{STEPS - 3}\\n' | {torch} {worker} mlp_sweep"
            found.setdefault("torch", []).append(timed("bash", "-c", code, environment={
                **environment, "BENCHMARK_TRIALS": str(WHOLE)}))
            code = f"printf '{STEPS - 3}\\n' | {torch} {worker} mlp"
            found.setdefault("torch runs", []).append(WHOLE * timed(
                "bash", "-c", code, environment=environment))
            console.print(json.dumps(found), markup=False)
        table.add_row(str(batch), *(f"{statistics.median(values):.1f} s"
                                    for values in found.values()))
    Console(width=220).print(table)


def search_table(seeds: int) -> None:
    """Thirty trials of TPE, and thirty random ones: the best test accuracy of each."""
    rows: dict[str, list[float]] = {"tpe": [], "random": []}
    for draws in range(seeds):
        for sampler in rows:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "searched.py"
                file.write_text(f"""
from experiments.mlp_digits import config as base
from jaxdl import config as tree
from jaxdl.sweep import *

def config():
    # The loss tells more than the accuracy, of which many trials have the same.
    return tree.replace(base(), {{"best.metric": "test/loss", "best.mode": "min"}})

def sweep():
    return optuna_(30, sampler={sampler!r}, draws={draws}, **{{
        "optimizer.learning_rate.peak": log_uniform(1e-5, 1),
        "optimizer.learning_rate.warmup": uniform(0, 0.5),
        "optimizer.b1": uniform(0, 0.99), "optimizer.eps": log_uniform(1e-10, 1e-1)}})
""")
                timed(sys.executable, "launch.py", "sweep", f"--experiment={file}",
                      f"--workdir={folder}/sweep", "--steps=300", "--evals.test.every=100",
                      environment={"PYTHONPATH": str(ROOT)})
                first = (Path(folder) / "sweep/results.csv").read_text().splitlines()[1]
                header = (Path(folder) / "sweep/results.csv").read_text().splitlines()[0]
                rows[sampler].append(float(first.split(",")[header.split(",").index("value")]))
        console.print(json.dumps(rows), markup=False)
    table = Table("sampler", *(f"seed {i}" for i in range(seeds)), "mean", box=MARKDOWN)
    for sampler, values in rows.items():
        table.add_row(sampler, *(f"{v:.4f}" for v in values), f"{statistics.fmean(values):.4f}")
    Console(width=220).print(table)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--trials", nargs="+", type=int, default=[1, 4, 8, 16, 32])
    parser.add_argument("--whole", action="store_true", help="whole sweeps instead")
    parser.add_argument("--search", action="store_true", help="TPE against random trials instead")
    flags = parser.parse_args()
    if flags.whole:
        whole_table(flags, min(flags.rounds, 3))
    elif flags.search:
        search_table(5)
    else:
        steps_table(flags, flags.workloads, flags.trials)


if __name__ == "__main__":
    main()
