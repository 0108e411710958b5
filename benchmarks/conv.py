"""Convolutions of the residual networks: plain XLA against the forms that `jaxdl.conv` chooses.

    python benchmarks/conv.py

Per shape the rates of the output and of the two gradients, then whole training steps (batch 128,
float32, SGD with momentum, donated state). The two take turns; medians.
"""

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.console import Console
from rich.table import Table

from jaxdl import conv
from jaxdl.allocator import keep_memory
from jaxdl.models.resnet import ResNet
from jaxdl.tracing import tracing

RUNS = 100_000
# Height, channels, features, kernel, stride.
SHAPES = [(32, 3, 16, 3, 1), (32, 16, 16, 3, 1), (32, 16, 32, 3, 2), (16, 32, 32, 3, 1),
          (16, 32, 64, 3, 2), (8, 64, 64, 3, 1), (32, 3, 64, 3, 1), (32, 64, 64, 3, 1),
          (32, 64, 128, 3, 2), (32, 64, 128, 1, 2), (16, 128, 128, 3, 1), (16, 128, 256, 3, 2),
          (8, 256, 256, 3, 1), (8, 256, 512, 3, 2), (4, 512, 512, 3, 1)]
# Of depthwise ones height, channels, kernel, stride: of EfficientNet-B0, and one of ConvNeXt-T.
DEPTHWISE = [(112, 32, 3, 1), (56, 96, 3, 2), (56, 144, 3, 1), (28, 240, 5, 1), (14, 480, 3, 1),
             (14, 672, 5, 1), (7, 1152, 5, 1), (14, 384, 7, 1)]


def medians(functions: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of each call, taken in turns."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for i in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            if i:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


def rates(batch: int, height: int, c: int, o: int, kernel: int, stride: int) -> list[str]:
    """One row: shape, and GFLOP/s of plain and chosen for each of the three."""
    x = jax.random.normal(jax.random.key(0), (batch, height, height, c))
    w = jax.random.normal(jax.random.key(1), (kernel, kernel, c, o))
    fast = conv.Forms("plain", "plain", "plain")
    if conv.enabled():
        fast = conv.choose(x.shape, w.shape, (stride, stride), True, False)
    side = (kernel // 2, kernel // 2)
    window = conv.Window((height, height), (kernel, kernel), (stride, stride), (side, side), fast)
    g = jnp.ones(jax.eval_shape(functools.partial(conv.plain_forward, window), x, w).shape)
    work = 2 * g.size * kernel ** 2 * c
    row = [f"{batch}x{height}x{height}x{c} to {o}, {kernel}x{kernel} / {stride}"]
    for forms, form, args in ((conv.FORWARD, fast.forward, (x, w)),
                              (conv.INPUT, fast.input, (g, w)),
                              (conv.WEIGHT, fast.weight, (x, g))):
        functions = {name: functools.partial(jax.jit(functools.partial(forms[name], window)), *args)
                     for name in {"plain": 0, form: 0}}
        seconds = medians(functions, rounds=7)
        row += [f"{work / seconds['plain'] / 1e9:.0f}",
                "" if form == "plain" else f"{work / seconds[form] / 1e9:.0f} {form}"]
    return row


def depthwise(batch: int, height: int, c: int, kernel: int, stride: int) -> list[str]:
    """One row: shape, and milliseconds, plain and as sums, of the output, and of it with the
    gradients in x and in w."""
    x = jax.random.normal(jax.random.key(0), (batch, height, height, c))
    w = jax.random.normal(jax.random.key(1), (kernel, kernel, 1, c))
    side = (kernel // 2, kernel // 2)

    def forward(x: jax.Array, w: jax.Array) -> jax.Array:
        return conv.convolve(x, w, (stride, stride), (side, side), dimension_numbers=conv.LAYOUT,
                             feature_group_count=c)

    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.sin(forward(x, w)).sum()

    functions = {}
    for plain in (True, False):
        with conv.plain() if plain else tracing():
            # A function of its own for each: what was traced once is not traced again.
            for name, function in (("y", lambda x, w: forward(x, w)), ("x", jax.grad(loss)),
                                   ("w", jax.grad(loss, argnums=1))):
                compiled = jax.jit(function).lower(x, w).compile()
                functions[f"{name} {plain}"] = functools.partial(compiled, x, w)
    seconds = medians(functions, rounds=5)
    return [f"{batch}x{height}x{height}x{c}, {kernel}x{kernel} / {stride}"] + [
        f"{1e3 * seconds[f'{name} {plain}']:.1f}" for name in ("y", "x", "w")
        for plain in (True, False)]


def train_step(depth: int, batch: int, plain: bool) -> tuple[Callable[[], Any], float, float]:
    """A residual network's step as a function without arguments; seconds to trace, to compile."""
    model = ResNet(depth=depth, stem="cifar")
    tx = optax.sgd(0.01, momentum=0.9)
    x = jax.random.normal(jax.random.key(0), (batch, 32, 32, 3))
    y = jax.random.randint(jax.random.key(1), (batch,), 0, 10)

    def start() -> tuple[Any, Any, Any]:
        variables = model.init(jax.random.key(2), x[:1], True)
        return variables["params"], variables["batch_stats"], tx.init(variables["params"])

    def step(state: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        params, statistics, opt_state = state

        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, changed = model.apply({"params": params, "batch_stats": statistics}, x, True,
                                          mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)  # type: ignore
            return losses.mean(), changed["batch_stats"]

        g, statistics = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(g, opt_state, params)
        return optax.apply_updates(params, updates), statistics, opt_state

    state = jax.jit(start)()
    with tracing(runs=RUNS), conv.plain() if plain else tracing():
        begin = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=0).lower(state)
        traced = time.perf_counter()
        compiled = lowered.compile()
        done = time.perf_counter()

    def run() -> Any:
        nonlocal state
        state = compiled(state)
        return state

    return run, traced - begin, done - traced


def main() -> None:
    keep_memory()
    console = Console(width=max(110, Console().width))
    device = jax.devices()[0]
    console.print(f"jax {jax.__version__}, {device.platform} {device.device_kind}")
    table = Table("convolution", "y plain", "y chosen", "dx plain", "dx chosen", "dw plain",
                  "dw chosen", title="GFLOP/s of the direct algorithm")
    for shape in SHAPES:
        table.add_row(*rates(128, *shape))
    console.print(table)
    table = Table("depthwise", "y plain", "y sums", "y, dx plain", "y, dx sums", "y, dw plain",
                  "y, dw sums", title="milliseconds")
    for shape in DEPTHWISE:
        table.add_row(*depthwise(16, *shape))
    console.print(table)
    table = Table("step", "form", "images/s", "ratio", "trace s", "compile s",
                  title="whole steps, batch 128")
    for depth, rounds in ((20, 15), (18, 7)):
        steps = {name: train_step(depth, 128, name == "plain") for name in ("plain", "chosen")}
        seconds = medians({name: step[0] for name, step in steps.items()}, rounds)
        for name, (_, trace, compiling) in steps.items():
            table.add_row(f"ResNet-{depth}", name, f"{128 / seconds[name]:.1f}",
                          f"{seconds['plain'] / seconds[name]:.2f}", f"{trace:.1f}",
                          f"{compiling:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
