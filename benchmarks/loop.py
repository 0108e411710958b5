"""What the training loop adds to the shortest loop that one could write in plain JAX.

    python benchmarks/loop.py [--pairs=200] [--workloads resnet20 gpt mlp]

The real loop of `train.fit` runs; before each chunk of steps it is held, and a bare loop on the
same network, data and optimizer runs as many steps. So both are timed alternately, in one process,
on one state of the machine. The ratio of each pair of neighbours is taken; its median is printed
with a 95 % bootstrap interval.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import workloads
from rich.console import Console
from rich.table import Table

from jaxdl import allocator, config, display, parallel, record, train
from jaxdl.checkpoint import Checkpoints
from jaxdl.clock import Clock
from jaxdl.data.digits import Digits
from jaxdl.data.source import permutation
from jaxdl.experiment import Experiment
from jaxdl.models.mlp import MLP
from jaxdl.models.resnet import ResNet
from jaxdl.optimizer import SGD, Constant
from jaxdl.process import Signals
from jaxdl.tasks.classification import Classification
from jaxdl.tracing import tracing

Loss = Callable[[Any, dict[str, Any]], tuple[Any, Any]]  # (variables, batch) -> (loss, mutable)


def classify(model: Any, data: Digits) -> Loss:
    mean, std = jnp.array(data.mean), jnp.array(data.std)

    def loss(variables: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        x = (batch["image"].astype(jnp.float32) / 255 - mean) / std
        logits, new = model.apply(variables, x, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean(), new

    return loss


def predict(model: Any) -> Loss:
    def loss(variables: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
        logits = model.apply(variables, batch["tokens"], train=True)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["next"])
        return losses.mean(), {}

    return loss


def bare(experiment: Experiment, loss: Loss, tx: Any) -> Any:
    """A generator; each `send(n)` runs n steps of a loop in plain JAX, Linen and Optax."""
    source: Any = experiment.data.open("train")
    model: Any = experiment.task.model  # type: ignore[attr-defined]
    arrays, batch_size = jax.tree.map(jnp.asarray, source.arrays), experiment.batch_size
    example = next(iter(arrays.values()))[:1]
    if example.ndim == 4:
        example = example.astype(jnp.float32)
    variables = model.init(jax.random.key(0), example, train=False)
    params, stats = variables.pop("params"), variables

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, arrays: Any, index: Any) -> Any:
        params, stats, opt_state = state
        batch = {name: x[index] for name, x in arrays.items()}
        (value, new), grads = jax.value_and_grad(
            lambda params: loss({"params": params, **stats}, batch), has_aux=True)(params)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), {**stats, **new}, opt_state), value

    state, size, i, value = (params, stats, tx.init(params)), source.size, 0, None
    while True:
        n = yield value
        for _ in range(n):
            epoch, offset = divmod(i * batch_size, size - size % batch_size)
            index = permutation(0, epoch, size)[offset:offset + batch_size]
            with tracing(runs=experiment.steps):  # the same forms of the layers
                state, value = step(state, arrays, index)
            i += 1
        jax.block_until_ready(state)


def pairs(experiment: Experiment, other: Any, chunk: int) -> np.ndarray:
    """Seconds of each chunk in the loop and of the bare chunk after it: [pairs, 2]."""
    next(other)
    times: list[tuple[float, float]] = []
    source = experiment.data.open("train")
    program = train.Program(experiment, source, parallel.arrange(experiment.mesh))
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
        run = record.Run(Path(folder), record.Recorded("loop", config.to_json(experiment), None,
                                                       None, ""), overrides={})
        train.Fit(experiment, run, program, Checkpoints(Path(folder) / "checkpoints"),
                   experiment.data.open, signals, Clock())(())
        run.close()
    return np.array(times)


def image_classifier(model: Any, data: Digits) -> tuple[Experiment, Loss, Any]:
    return Experiment(
        task=Classification(model=model), data=data, batch_size=128, steps=1,
        optimizer=SGD(learning_rate=Constant(peak=0.01), momentum=0.9)), classify(model, data), (
            optax.sgd(0.01, momentum=0.9))


def gpt() -> tuple[Experiment, Loss, Any]:
    experiment = workloads.gpt()
    return experiment, predict(experiment.task.model), (  # type: ignore[attr-defined]
        optax.adamw(1e-3, weight_decay=1e-2))


# Title, (experiment, loss and optimizer of the bare loop), steps in a chunk, goal.
WORKLOADS: dict[str, tuple[str, Callable[[], tuple[Experiment, Loss, Any]], int, float]] = {
    "resnet20": ("ResNet-20, batch 128", lambda: image_classifier(ResNet(depth=20), Digits()), 1,
                 1.01),
    "gpt": ("GPT 6 x 384, 12 x 256 tokens", gpt, 1, 1.01),
    "mlp": ("MLP 784-256-128-10, batch 128",
            lambda: image_classifier(MLP(), Digits(size=28, channels=1)), 100, 1.03)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    options = parser.parse_args()
    allocator.keep_memory()
    display.console.quiet = True
    table = Table("workload", "bare ms/step", "jaxdl ms/step", "ratio", "95 % interval", "goal",
                  title=f"{options.pairs} interleaved pairs; jax {jax.__version__}, "
                        f"{jax.device_count()} {jax.devices()[0].platform} device(s)")
    random = np.random.default_rng(0)
    for name in options.workloads:
        title, build, chunk, goal = WORKLOADS[name]
        experiment, loss, tx = build()
        experiment = config.replace(experiment, {
            "steps": chunk * (options.pairs + 4), "save_every": 1_000_000_000, "log_every": 50})
        times = pairs(experiment, bare(experiment, loss, tx), chunk)
        ratios = times[:, 0] / times[:, 1]
        medians = np.median(random.choice(ratios, (2_000, len(ratios))), axis=1)
        low, high = np.percentile(medians, [2.5, 97.5])
        ours, theirs = np.median(times, axis=0) / chunk * 1e3
        table.add_row(title, f"{theirs:.3f}", f"{ours:.3f}", f"{np.median(ratios):.4f}",
                      f"{low:.4f} - {high:.4f}", f"< {goal}")
        Console().print(f"{name}: {table.row_count} of {len(options.workloads)} done")
    Console().print(table)


if __name__ == "__main__":
    main()
