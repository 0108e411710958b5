"""`ppo_cartpole` in jaxdl, 20 iterations a turn: by the training loop with its log (--form=loop),
by its compiled step alone (bare), and 16 seeds in one step (seeds). Nothing is evaluated."""

import argparse
import queue
import tempfile
import threading
from pathlib import Path
from typing import Any

from worker import Job, serve

import jax  # isort: skip  # after the allocator's settings
from optax_step import count

import jaxdl
from experiments.ppo_cartpole import config as cartpole
from jaxdl import config, display, parallel, record, train

TOGETHER, SEEDS = 20, 16  # iterations of a turn, trials
VERSION = f"jaxdl {jaxdl.__version__}, jax {jax.__version__}"
EXPERIMENT = config.replace(cartpole(), {
    "steps": 100_000, "save_every": 1_000_000_000, "log_every": TOGETHER, "evals": {},
    "best.metric": None})


def bare(seeds: int) -> Job:
    """The step of the experiment, called as the loop calls it; of one seed or of several."""
    devices = parallel.arrange(EXPERIMENT.mesh, devices=jax.devices()[:1])
    source = EXPERIMENT.data.open("train")
    trials = [(config.replace(EXPERIMENT, {"seed": seed}), source) for seed in range(seeds)]
    program = train.Program(EXPERIMENT, source, devices, trials=trials if seeds > 1 else ())
    carry = program.init(program.knobs)
    parameters = count(carry.state.params) // seeds
    plan, position = program.plan(0, EXPERIMENT.steps), 0

    def run(turns: int) -> float:
        nonlocal carry, position
        for _ in range(turns * TOGETHER):
            carry = program.advance(carry, [plan[position]])
            position += 1
        jax.block_until_ready(carry)
        return float(carry.window.last["loss"].mean())

    return Job(lambda: parameters, run, jax.devices()[0].device_kind, VERSION)


def loop() -> None:
    """`train.fit` in this thread; before each turn it waits for another one, which is asked."""
    asked: queue.Queue[int | None] = queue.Queue()
    done: queue.Queue[tuple[int, float]] = queue.Queue()

    class Held(train.Program):
        left = 0

        def advance(self, carry: train.Carry, batches: Any) -> train.Carry:
            if not self.left:
                jax.block_until_ready(carry)
                done.put((count(carry.state.params), float(carry.window.last["loss"])))
                turns = asked.get()
                if turns is None:
                    raise SystemExit
                self.left = turns * TOGETHER
            self.left -= len(batches)
            return super().advance(carry, batches)

    def run(turns: int) -> float:
        asked.put(turns)
        return done.get()[1]

    def build() -> Job:
        parameters, _ = done.get()
        return Job(lambda: parameters, run, jax.devices()[0].device_kind, VERSION)

    def answer() -> None:
        serve(build)
        asked.put(None)

    threading.Thread(target=answer, daemon=True).start()
    display.console.quiet = True
    with tempfile.TemporaryDirectory() as folder:
        train.fit(EXPERIMENT, record.Run(Path(folder), record.Recorded(
            "rl", config.to_json(EXPERIMENT), None, None, ""), overrides={}), compile=Held)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--form", default="bare", choices=("loop", "bare", "seeds"))
    flags = parser.parse_args()
    if flags.form == "loop":
        loop()
    else:
        serve(lambda: bare(SEEDS if flags.form == "seeds" else 1))
