"""The workloads in jaxdl: the compiled step of an experiment, called as the training loop calls it.

The trials of a sweep one after another are such steps too. Stacked in one program (vmap, map) they
are what a sweep could do: no command of jaxdl runs them yet.

A step here does a little more than those of the peers: it gathers its batch from the data on the
device, sums the metrics of the log interval and looks for values that are not finite.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from worker import RATES, TRIALS, Job, serve

import jax  # isort: skip  # after the allocator's settings
import jax.numpy as jnp
import numpy as np
from optax_step import count

sys.path.insert(0, str(Path(__file__).parents[1]))
import workloads

import jaxdl
from jaxdl import parallel
from jaxdl.tracing import tracing
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
    """Eight trials of different learning rates and seeds: the floats are arguments of the step, so
    one compilation serves all; one after another, or all in one program by vmap or by a loop."""
    compiled = program(workload)
    floats, seed = compiled.knobs
    rate = compiled._paths.index("optimizer.learning_rate.peak")
    knobs: Any = [(floats.at[rate].set(r), seed + np.uint32(i)) for i, r in enumerate(RATES)]
    states: Any = [compiled.init(k).state for k in knobs]
    parameters = count(states[0].params)
    plan, position = compiled.plan(0, workloads.STEPS), 0

    def step(state: Any, knobs: Any, arrays: Any, inputs: Any) -> Any:
        with tracing(runs=workloads.STEPS, loop=form != "sequential"):
            state, metrics = compiled._advance(state, knobs, arrays, inputs)
        return state, metrics["loss"].value()

    def mapped(states: Any, knobs: Any, arrays: Any, inputs: Any) -> Any:
        return jax.lax.map(lambda both: step(*both, arrays, inputs), (states, knobs))

    if form == "sequential":
        advance = jax.jit(step, donate_argnums=0)
    else:
        advance = jax.jit(mapped if form == "map" else jax.vmap(step, (0, 0, None, None)),
                          donate_argnums=0)
        knobs, states = (jax.tree.map(lambda *x: jnp.stack(x), *trees)
                         for trees in (knobs, states))

    def run(steps: int) -> float:
        nonlocal states, position
        loss: Any = None
        for _ in range(steps):
            inputs, position = plan[position], position + 1
            if form == "sequential":
                for i in range(TRIALS):
                    states[i], loss = advance(states[i], knobs[i], compiled.arrays, inputs)
            else:
                states, loss = advance(states, knobs, compiled.arrays, inputs)
        jax.block_until_ready(states)
        return float(jnp.mean(loss))

    return Job(lambda: parameters, run, kind(), VERSION)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--form", default="sequential", choices=("sequential", "vmap", "map"))
    flags = parser.parse_args()
    serve(lambda: sweep(flags.workload, flags.form) if flags.workload.endswith("_sweep")
          else single(flags.workload))
