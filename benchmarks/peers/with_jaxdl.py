"""The workloads in jaxdl: the compiled step of an experiment, called as the training loop calls it.

A step here does a little more than those of the peers: it gathers its batch from the data on the
device, sums the metrics of the log interval and looks for values that are not finite.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

from worker import RATES, TRIALS, Job, serve

import jax  # isort: skip  # after the allocator's settings
import jax.numpy as jnp
from optax_step import count

sys.path.insert(0, str(Path(__file__).parents[1]))
import workloads

import jaxdl
from jaxdl import config, parallel
from jaxdl.train import Program

VERSION = f"jaxdl {jaxdl.__version__}, jax {jax.__version__}"


def program(workload: str) -> Program:
    experiment = workloads.EXPERIMENTS[workload]()
    devices = parallel.arrange(experiment.mesh, devices=jax.devices()[:1])
    return Program(experiment, experiment.data.open("train"), devices)


def kind() -> str:
    return jax.devices()[0].device_kind


def single(workload: str) -> Job:
    compiled = program(workload)
    carry = compiled.init(compiled.knobs)
    parameters = count(carry.state.params)
    plan, position = compiled.plan(0, workloads.STEPS), 0

    def run(steps: int) -> float:
        nonlocal carry, position
        end = position + steps
        while position < end:
            several = min(compiled.fused, end - position)
            carry = compiled.advance(carry, [plan[position + i] for i in range(several)])
            position += several
        jax.block_until_ready(carry)
        loss = carry.window.means["loss"]
        carry = dataclasses.replace(carry, window=compiled.reset(carry.window))
        return float(loss.value())

    return Job(lambda: parameters, run, kind(), VERSION)


def sweep(workload: str, form: str) -> Job:
    """Trials of different learning rates and seeds, as the `sweep` command trains them: one after
    another with the same compiled step, or all in one by vmap."""
    base = workloads.EXPERIMENTS[workload]()
    devices = parallel.arrange(base.mesh, devices=jax.devices()[:1])
    source = base.data.open("train")
    trials = [(config.replace(base, {"optimizer.learning_rate.peak": rate, "seed": seed}), source)
              for seed, rate in enumerate(RATES)]
    first = Program(*trials[0], devices, trials=trials if form == "vmap" else ())
    programs = [first] if form == "vmap" else [first.of(*trial) for trial in trials]
    carries = [p.init(p.knobs) for p in programs]
    parameters = count(carries[0].state.params) // (TRIALS if form == "vmap" else 1)
    plans, position = [p.plan(0, workloads.STEPS) for p in programs], 0

    def run(steps: int) -> float:
        nonlocal position
        for i, (compiled, plan) in enumerate(zip(programs, plans, strict=True)):
            at, end = position, position + steps
            while at < end:
                several = min(compiled.fused, end - at)
                carries[i] = compiled.advance(carries[i], [plan[at + k] for k in range(several)])
                at += several
        position += steps
        jax.block_until_ready(carries)
        loss = carries[0].window.means["loss"]
        return float(jnp.mean(loss.total / loss.count))

    return Job(lambda: parameters, run, kind(), VERSION)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--form", default="sequential", choices=("sequential", "vmap"))
    flags = parser.parse_args()
    serve(lambda: sweep(flags.workload, flags.form) if flags.workload.endswith("_sweep")
          else single(flags.workload))
