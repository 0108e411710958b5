"""The workloads in plain JAX and Optax: parameters are nested lists and dicts, no framework."""

import argparse
import math
from itertools import pairwise
from typing import Any

from worker import (
    CNN,
    GPT,
    LSTM,
    RATES,
    RESNETS,
    TRIALS,
    VOCABULARY,
    WIDTHS,
    Job,
    examples,
    matrices,
    serve,
)

import jax  # isort: skip  # after the allocator's settings
import jax.numpy as jnp
import numpy as np
import optax
from optax_step import count, cross_entropy, job, transformation

random = np.random.default_rng(0)


def normal(*shape: int, scale: float | None = None) -> Any:
    scale = 1 / math.sqrt(math.prod(shape[:-1])) if scale is None else scale
    return random.standard_normal(shape, dtype=np.float32) * np.float32(scale)


def dense(old: int, new: int) -> Any:
    return {"w": normal(old, new), "b": np.zeros(new, np.float32)}


def scale(width: int) -> Any:
    return {"g": np.ones(width, np.float32), "b": np.zeros(width, np.float32)}


def apply(p: Any, x: Any) -> Any:
    return x @ p["w"].astype(x.dtype) + p["b"].astype(x.dtype)


def conv(x: Any, w: Any, stride: int) -> Any:
    pad = w.shape[0] // 2
    return jax.lax.conv_general_dilated(x, w, (stride, stride), ((pad, pad), (pad, pad)),
                                        dimension_numbers=("NHWC", "HWIO", "NHWC"))


def batch_norm(x: Any, p: Any, old: Any, new: list[Any]) -> Any:
    """Normalises by the batch, and appends the updated running statistics to `new`."""
    mean = x.mean((0, 1, 2))
    var = jnp.maximum(jnp.square(x).mean((0, 1, 2)) - jnp.square(mean), 0)
    new.append(jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, old, {"mean": mean, "var": var}))
    return (x - mean) * (jax.lax.rsqrt(var + 1e-5) * p["g"]) + p["b"]


def resnet(workload: str) -> tuple[Any, Any, Any]:
    channels, stages = RESNETS[workload]
    shapes = [(3, 3, 3, channels, 1)]
    for new, blocks, stride in stages:
        for i in range(blocks):
            s = stride if i == 0 else 1
            shapes += [(3, 3, channels, new, s), (3, 3, new, new, 1)]
            shapes += [(1, 1, channels, new, s)] if channels != new else []
            channels = new
    params = {"conv": [normal(*s[:4], scale=math.sqrt(2 / (s[0] * s[1] * s[3]))) for s in shapes],
              "norm": [scale(s[3]) for s in shapes], "head": dense(channels, 10)}
    statistics = [{"mean": np.zeros(s[3], np.float32), "var": np.ones(s[3], np.float32)}
                  for s in shapes]

    def loss(params: Any, statistics: Any, x: Any, y: Any) -> Any:
        layers = iter(zip(params["conv"], params["norm"], statistics, shapes, strict=True))
        updated: list[Any] = []

        def layer(x: Any) -> Any:
            w, p, old, shape = next(layers)
            return batch_norm(conv(x, w, shape[4]), p, old, updated)

        x = jax.nn.relu(layer(x))
        for new, blocks, _ in stages:
            for _ in range(blocks):
                z = layer(jax.nn.relu(layer(x)))
                x = jax.nn.relu(z + (layer(x) if x.shape[-1] != new else x))
        return cross_entropy(apply(params["head"], x.mean((1, 2))), y), updated

    return params, statistics, loss


def gpt(half: bool) -> tuple[Any, Any, Any]:
    width, heads, block = GPT["width"], GPT["heads"], GPT["block"]
    params = {"tokens": normal(VOCABULARY, width, scale=0.02), "norm": scale(width),
              "positions": normal(block, width, scale=0.02),
              "layers": [{"norm1": scale(width), "qkv": dense(width, 3 * width),
                          "out": dense(width, width), "norm2": scale(width),
                          "up": dense(width, 4 * width), "down": dense(4 * width, width)}
                         for _ in range(GPT["layers"])]}
    kind = jnp.bfloat16 if half else jnp.float32

    def layer_norm(p: Any, x: Any) -> Any:
        x = x.astype(jnp.float32)
        mean = x.mean(-1, keepdims=True)
        var = jnp.square(x - mean).mean(-1, keepdims=True)
        return ((x - mean) * jax.lax.rsqrt(var + 1e-5) * p["g"] + p["b"]).astype(kind)

    def loss(params: Any, statistics: Any, x: Any, y: Any) -> Any:
        b, t = x.shape
        x = (params["tokens"][x] + params["positions"]).astype(kind)
        for p in params["layers"]:
            qkv = apply(p["qkv"], layer_norm(p["norm1"], x))
            q, k, v = jnp.split(qkv.reshape(b, t, 3 * heads, width // heads), 3, 2)
            z = jax.nn.dot_product_attention(q, k, v, is_causal=True)
            x = x + apply(p["out"], z.reshape(b, t, width))
            x = x + apply(p["down"], jax.nn.gelu(apply(p["up"], layer_norm(p["norm2"], x))))
        logits = layer_norm(params["norm"], x) @ params["tokens"].T.astype(kind)
        return cross_entropy(logits, y), statistics

    return params, {}, loss


def lstm() -> tuple[Any, Any, Any]:
    width = LSTM["width"]
    params = {"tokens": normal(VOCABULARY, LSTM["embedding"]), "out": dense(width, VOCABULARY),
              "x": normal(LSTM["embedding"], 4 * width), "h": dense(width, 4 * width)}

    def loss(params: Any, statistics: Any, x: Any, y: Any) -> Any:
        def cell(carry: Any, z: Any) -> Any:  # z  # [B, embedding]
            h, c = carry
            i, f, g, o = jnp.split(z @ params["x"] + apply(params["h"], h), 4, -1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((x.shape[0], width))
        h = jax.lax.scan(cell, (zeros, zeros), params["tokens"][x.T])[1]  # [T, B, width]
        return cross_entropy(apply(params["out"], h), y.T), statistics

    return params, {}, loss


def mlp() -> tuple[Any, Any, Any]:
    params = [dense(old, new) for old, new in pairwise(WIDTHS)]

    def loss(params: Any, statistics: Any, x: Any, y: Any) -> Any:
        for p in params[:-1]:
            x = jax.nn.relu(apply(p, x))
        return cross_entropy(apply(params[-1], x), y), statistics

    return params, {}, loss


def cnn() -> tuple[Any, Any, Any]:
    params = {"conv": [{"w": normal(3, 3, old, new), "b": np.zeros(new, np.float32)}
                       for old, new in pairwise(CNN)],
              "head": dense(CNN[-1], 10)}

    def loss(params: Any, statistics: Any, x: Any, y: Any) -> Any:
        for p in params["conv"]:
            x = jax.nn.relu(conv(x, p["w"], 2) + p["b"])
        return cross_entropy(apply(params["head"], x.mean((1, 2))), y), statistics

    return params, {}, loss


def network(workload: str) -> tuple[Any, Any, Any]:
    """(params, statistics, loss)."""
    if workload in RESNETS:
        return resnet(workload)
    if workload.startswith("gpt"):
        return gpt(workload.endswith("_bf16"))
    return {"lstm": lstm, "mlp": mlp, "cnn": cnn}[workload.removesuffix("_sweep")]()


def sweep(workload: str, mapped: bool) -> Job:
    """Trials: one after another, or (mapped) in one program by vmap."""
    base = workload.removesuffix("_sweep")
    trials = [network(base) for _ in range(TRIALS)]
    loss = trials[0][2]

    def step(state: Any, rate: Any, x: Any, y: Any) -> Any:
        params, trace = state
        value, grads = jax.value_and_grad(lambda p: loss(p, {}, x, y)[0])(params)
        updates, trace = transformation(base, rate).update(grads, trace)
        return (optax.apply_updates(params, updates), trace), value

    x, y = jax.device_put(examples(workload))
    tx = transformation(base)
    states = [jax.device_put((p, tx.init(p))) for p, _, _ in trials]
    if mapped:
        compiled = jax.jit(jax.vmap(step, (0, 0, None, None)), donate_argnums=0)
        states, rates = [jax.tree.map(lambda *a: jnp.stack(a), *states)], [np.float32(RATES)]
    else:
        compiled = jax.jit(step, donate_argnums=0)
        rates = [np.float32(rate) for rate in RATES]

    def run(steps: int) -> float:
        value: Any = None
        for _ in range(steps):
            for i, rate in enumerate(rates):
                states[i], value = compiled(states[i], rate, x, y)
        jax.block_until_ready(states)
        return float(jnp.mean(value))

    return Job(lambda: count(trials[0][0]), run, jax.devices()[0].device_kind,
               f"jax {jax.__version__}")


def products() -> Job:
    """A dense layer and its gradients, without anything around them."""
    x, w, g = jax.device_put(matrices())
    compiled = jax.jit(lambda x, w, g: (x @ w, g @ w.T, x.T @ g))

    def run(steps: int) -> float:
        result: Any = None
        for _ in range(steps):
            result = compiled(x, w, g)
        return float(jax.block_until_ready(result)[0][0, 0])

    return Job(lambda: w.size, run, jax.devices()[0].device_kind, f"jax {jax.__version__}")


def build(workload: str, mapped: bool) -> Job:
    if workload == "products":
        return products()
    if workload.endswith("_sweep"):
        return sweep(workload, mapped)
    params, statistics, loss = network(workload)
    return job(workload, loss, *jax.device_put((params, statistics)), examples(workload),
               f"jax {jax.__version__}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--vmap", action="store_true")
    flags = parser.parse_args()
    serve(lambda: build(flags.workload, flags.vmap))
