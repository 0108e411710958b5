"""What the training loop adds to the shortest loop that one could write in plain JAX.

    python benchmarks/loop.py [--pairs=200]

The real loop of `train.fit` runs; before each chunk of steps it is held, and a bare loop on the
same network, data and optimizer runs as many steps. So both are timed alternately, in one process,
on one state of the machine. The ratio of each pair of neighbours is taken; its median is printed
with a 95 % bootstrap interval.
"""

import argparse
import functools
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from jaxdl import config, parallel, record, train
from jaxdl.checkpoint import Checkpoints
from jaxdl.data.digits import Digits
from jaxdl.data.source import permutation
from jaxdl.experiment import Experiment
from jaxdl.models.mlp import MLP
from jaxdl.models.resnet import ResNet
from jaxdl.optimizer import SGD, Constant
from jaxdl.process import Signals
from jaxdl.tasks.classification import Classification

BATCH = 128


def bare(model: Any, data: Digits) -> Any:
    """A generator; each `send(n)` runs n steps of a loop in plain JAX, Linen and Optax."""
    source: Any = data.open("train")
    images, labels = jnp.asarray(source.arrays["image"]), jnp.asarray(source.arrays["label"])
    mean, std = jnp.array(data.mean), jnp.array(data.std)
    variables = model.init(jax.random.key(0), jnp.zeros((1, *images.shape[1:])), train=False)
    params, stats = variables["params"], variables.get("batch_stats", {})
    tx = optax.sgd(0.01, momentum=0.9)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, images: Any, labels: Any, index: Any) -> Any:
        params, stats, opt_state = state

        def loss(params: Any) -> Any:
            x = (images[index].astype(jnp.float32) / 255 - mean) / std
            logits, new = model.apply({"params": params, "batch_stats": stats}, x, train=True,
                                      mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, labels[index]).mean(), new

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state)
        return (optax.apply_updates(params, updates), new.get("batch_stats", {}), opt_state), value

    state, size, i, value = (params, stats, tx.init(params)), len(images), 0, None
    while True:
        n = yield value
        for _ in range(n):
            epoch, offset = divmod(i * BATCH, size - size % BATCH)
            index = permutation(0, epoch, size)[offset:offset + BATCH]
            state, value = step(state, images, labels, index)
            i += 1
        jax.block_until_ready(state)


def pairs(name: str, model: Any, data: Digits, chunk: int, count: int) -> np.ndarray:
    """Seconds of each chunk in the loop and of the bare chunk after it: [count, 2]."""
    experiment = Experiment(
        task=Classification(model=model), data=data, batch_size=BATCH,
        optimizer=SGD(learning_rate=Constant(peak=0.01), momentum=0.9),
        steps=chunk * (count + 4), save_every=1_000_000_000, log_every=50)
    other = bare(model, data)
    next(other)
    times: list[tuple[float, float]] = []
    devices = parallel.arrange(experiment.mesh)
    program = train.Program(experiment, data.open("train"), devices)
    step, calls, began = program.step, 0, 0.0

    def held(carry: Any, *rest: Any) -> Any:
        nonlocal calls, began
        if calls % chunk == 0:  # a multiple of log_every or one step, so every one is met
            jax.block_until_ready(carry)
            middle = time.perf_counter()
            other.send(chunk)
            end = time.perf_counter()
            if calls >= 4 * chunk:  # after a warm-up of both
                times.append((middle - began, end - middle))
            began = time.perf_counter()
        calls += int(rest[-1]) if program.fused > 1 else 1  # of steps in this dispatch
        return step(carry, *rest)

    held.lower = step.lower  # type: ignore[attr-defined]
    program.step = held  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder, Signals() as signals:
        run = record.Run(Path(folder), record.Recorded(name, config.to_json(experiment), None, None,
                                                       ""), overrides={})
        train._Fit(experiment, run, program, Checkpoints(Path(folder) / "checkpoints"),
                   data.open, signals)(())
        run.close()
    return np.array(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=200)
    count = parser.parse_args().pairs
    record.console.quiet = True
    table = Table("workload", "bare ms/step", "jaxdl ms/step", "ratio", "95 % interval", "goal",
                  title=f"{count} interleaved pairs; jax {jax.__version__}, "
                        f"{jax.device_count()} {jax.devices()[0].platform} device(s)")
    random = np.random.default_rng(0)
    for name, model, data, chunk, goal in (
            ("ResNet-20, batch 128", ResNet(depth=20), Digits(), 1, 1.01),
            ("MLP 784-256-128-10, batch 128", MLP(), Digits(size=28, channels=1), 100, 1.03)):
        times = pairs(name, model, data, chunk, count)
        ratios = times[:, 0] / times[:, 1]
        medians = np.median(random.choice(ratios, (2_000, len(ratios))), axis=1)
        low, high = np.percentile(medians, [2.5, 97.5])
        ours, theirs = np.median(times, axis=0) / chunk * 1e3
        table.add_row(name, f"{theirs:.3f}", f"{ours:.3f}", f"{np.median(ratios):.4f}",
                      f"{low:.4f} - {high:.4f}", f"< {goal}")
    Console().print(table)


if __name__ == "__main__":
    main()
