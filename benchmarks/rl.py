"""PPO on CartPole against PyTorch: environment steps a second, playing and learning together.

    python benchmarks/rl.py [--parts speed whole learn] [--rounds=7] [--out=FILE]

- speed: jaxdl's `ppo_cartpole` by the real loop of `train.fit` with its log; its compiled step
  alone, so that what the loop adds is seen; 16 seeds in one step; and PPO in PyTorch on Gymnasium's
  environments, written as CleanRL does (`peers/ppo_torch.py`): the same network, 16 environments,
  128 steps, 4 epochs of 4 minibatches, and the same hyperparameters.
- whole: the command that trains one seed, and the sweep that trains 16 together: start,
  compilation and evaluation included.
- learn: whole runs of 500,000 steps of both, and what 100 episodes of the likeliest actions return.

Ratios are medians over rounds of those within a round. Without --torch-python an environment for
PyTorch is made in ~/.cache/jaxdl/bench; it needs Gymnasium too.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from contest import PEERS, arguments, chosen, compete, console, interpreters, interval, machine
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
GYMNASIUM = "gymnasium==1.3.0"
STEPS = 20 * 16 * 128  # of environments in a turn of every contender
ITERATIONS, SEEDS = 244, 16
GOAL, GOAL_OF_SEEDS = 20, 4
CONTENDERS = {"jaxdl": ("ppo_jaxdl.py", "--form=loop"),
              "jaxdl bare step": ("ppo_jaxdl.py", "--form=bare"),
              "jaxdl 16 seeds": ("ppo_jaxdl.py", "--form=seeds"),
              "torch": ("ppo_torch.py",), "torch one thread": ("ppo_torch.py", "--threads=1")}


def speed(flags: Any, pythons: dict[str, str], records: Any) -> None:
    names = chosen(flags, list(CONTENDERS))
    results = compete("ppo", {n: CONTENDERS[n] for n in names}, pythons, flags, records)
    found = {r.name: np.array(r.seconds) for r in results}
    peer = min((n for n in found if n.startswith("torch")), key=lambda n: np.median(found[n]),
               default=None)
    table = Table("contender", "environment steps/s", "ms/iteration", "ratio to fastest PyTorch",
                  "95 % interval", "goal", box=MARKDOWN)
    for name, seconds in found.items():
        seeds = SEEDS if name == "jaxdl 16 seeds" else 1
        ratio = between = ""
        if peer is not None:
            median, low, high = interval(list(seeds * found[peer] / seconds))
            ratio, between = f"{median:.1f}", f"{low:.1f} - {high:.1f}"
        table.add_row(name, f"{seeds * STEPS / np.median(seconds):,.0f}",
                      f"{1e3 * np.median(seconds) / 20:.3g}", ratio, between,
                      str(GOAL) if name == "jaxdl" else "")
    Console(width=160).print(table)
    for title, slow, fast, goal in (
            ("the loop over its step", "jaxdl", "jaxdl bare step", ""),
            ("16 seeds over one", "jaxdl 16 seeds", "jaxdl bare step",
             f"; goal: less than {GOAL_OF_SEEDS}")):
        if slow in found and fast in found:
            median, low, high = interval(list(found[slow] / found[fast]))
            console.print(f"{title}: {median:.2f} times the time ({low:.2f} - {high:.2f}){goal}",
                          highlight=False)
    console.print(f"{flags.rounds} rounds; {machine(results)}", highlight=False, markup=False,
                  soft_wrap=True)


def launched(*words: str) -> float:
    """Seconds of a command of jaxdl."""
    began = time.monotonic()
    subprocess.run([sys.executable, ROOT / "launch.py", *words, "--experiment=ppo_cartpole"],
                   check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    return time.monotonic() - began


def whole(rounds: int) -> None:
    seconds: dict[str, list[float]] = {"one seed": [], "16 seeds": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            seconds["one seed"].append(launched(f"--workdir={folder}/run"))
            seconds["16 seeds"].append(launched(
                "sweep", f"--workdir={folder}/sweep", "--executor=vmap",
                f"--over=seed={','.join(map(str, range(SEEDS)))}", "--metric=test/return"))
    table = Table("command", "seconds", box=MARKDOWN)
    for name, values in seconds.items():
        table.add_row(name, f"{np.median(values):.1f}")
    Console().print(table)
    median, low, high = interval([a / b for a, b in zip(*reversed(seconds.values()), strict=True)])
    console.print(f"16 seeds over one: {median:.2f} times the time ({low:.2f} - {high:.2f}); goal: "
                  f"less than {GOAL_OF_SEEDS}", highlight=False)


def learn(torch: str, seeds: int) -> None:
    returns: dict[str, list[float]] = {"jaxdl": [], "PyTorch": []}
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as name:
            run = Path(name, "run")
            launched(f"--seed={seed}", f"--workdir={run}")
            lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
            returns["jaxdl"].append(
                next(x["test/return"] for x in reversed(list(lines)) if "test/return" in x))
        command = [torch, PEERS / "ppo_torch.py", "--threads=1", f"--learn={ITERATIONS}",
                   f"--seed={seed}"]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        returns["PyTorch"].append(float(said.stdout))
    table = Table("", *(f"seed {i}" for i in range(seeds)), box=MARKDOWN)
    for who, values in returns.items():
        table.add_row(who, *(f"{value:.0f}" for value in values))
    Console().print(table)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--parts", nargs="+", choices=("speed", "whole", "learn"),
                        default=["speed", "whole", "learn"])
    parser.add_argument("--seeds", type=int, default=3, help="of the part learn")
    parser.set_defaults(rounds=7)
    flags = parser.parse_args()
    pythons = interpreters(flags, ["jax", "torch"])
    if subprocess.run([pythons["torch"], "-c", "import gymnasium"], capture_output=True).returncode:
        sys.exit(f"PyTorch's environment has no Gymnasium: {pythons['torch']} -m pip install "
                 f"{GYMNASIUM}")
    with (flags.out or Path(os.devnull)).open("a") as records:
        print(json.dumps({"command": sys.argv, "time": time.time()}), file=records)
        if "speed" in flags.parts:
            speed(flags, pythons, records)
    if "whole" in flags.parts:
        whole(min(flags.rounds, 3))
    if "learn" in flags.parts:
        learn(pythons["torch"], flags.seeds)


if __name__ == "__main__":
    main()
