"""The workloads in Flax NNX and Optax, with `nnx.Optimizer` and `nnx.jit` as its guide has them."""

import argparse
from itertools import pairwise
from typing import Any

from worker import GPT, LSTM, RESNETS, VOCABULARY, WIDTHS, Job, examples, serve

import jax  # isort: skip  # after the allocator's settings
import flax
import jax.numpy as jnp
from flax import nnx
from optax_step import count, cross_entropy, transformation


class Unit(nnx.Module):
    """Convolution and batch norm."""

    def __init__(self, old: int, new: int, kernel: int, stride: int, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(old, new, (kernel, kernel), stride, padding=kernel // 2,
                             use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(new, momentum=0.9, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.norm(self.conv(x))


class Block(nnx.Module):
    def __init__(self, old: int, new: int, stride: int, rngs: nnx.Rngs) -> None:
        self.unit1, self.unit2 = Unit(old, new, 3, stride, rngs), Unit(new, new, 3, 1, rngs)
        self.shortcut = Unit(old, new, 1, stride, rngs) if old != new else None

    def __call__(self, x: Any) -> Any:
        y = self.unit2(nnx.relu(self.unit1(x)))
        return nnx.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    def __init__(self, workload: str, rngs: nnx.Rngs) -> None:
        channels, stages = RESNETS[workload]
        self.stem, blocks = Unit(3, channels, 3, 1, rngs), []
        for new, number, stride in stages:
            for i in range(number):
                blocks.append(Block(channels, new, stride if i == 0 else 1, rngs))
                channels = new
        self.blocks, self.head = nnx.List(blocks), nnx.Linear(channels, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class Layer(nnx.Module):
    def __init__(self, dtype: Any, rngs: nnx.Rngs) -> None:
        width = GPT["width"]

        def linear(old: int, new: int) -> nnx.Linear:
            return nnx.Linear(old, new, dtype=dtype, rngs=rngs)

        self.norm1 = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)
        self.qkv, self.out = linear(width, 3 * width), linear(width, width)
        self.up, self.down = linear(width, 4 * width), linear(4 * width, width)

    def __call__(self, x: Any) -> Any:
        heads, width = GPT["heads"], GPT["width"]
        qkv = self.qkv(self.norm1(x)).reshape(*x.shape[:2], 3 * heads, width // heads)
        q, k, v = jnp.split(qkv, 3, 2)
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Decoder(nnx.Module):
    def __init__(self, dtype: Any, rngs: nnx.Rngs) -> None:
        width = GPT["width"]
        self.tokens = nnx.Embed(VOCABULARY, width, dtype=dtype, rngs=rngs)
        self.positions = nnx.Embed(GPT["block"], width, dtype=dtype, rngs=rngs)
        self.layers = nnx.List([Layer(dtype, rngs) for _ in range(GPT["layers"])])
        self.norm = nnx.LayerNorm(width, dtype=dtype, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.tokens(x) + self.positions(jnp.arange(x.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.tokens.attend(self.norm(x))


class CharRNN(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        width, embedding = LSTM["width"], LSTM["embedding"]
        self.tokens = nnx.Embed(VOCABULARY, embedding, rngs=rngs)
        self.lstm = nnx.RNN(nnx.OptimizedLSTMCell(embedding, width, rngs=rngs), rngs=rngs)
        self.out = nnx.Linear(width, VOCABULARY, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.out(self.lstm(self.tokens(x)))


class MLP(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(old, new, rngs=rngs)
                                for old, new in pairwise(WIDTHS)])

    def __call__(self, x: Any) -> Any:
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


def network(workload: str, rngs: nnx.Rngs) -> nnx.Module:
    if workload in RESNETS:
        return ResNet(workload, rngs)
    if workload.startswith("gpt"):
        return Decoder(jnp.bfloat16 if workload.endswith("_bf16") else jnp.float32, rngs)
    return {"lstm": CharRNN, "mlp": MLP}[workload](rngs)


def build(workload: str) -> Job:
    model: Any = nnx.jit(lambda: network(workload, nnx.Rngs(0)))()
    optimizer = nnx.Optimizer(model, transformation(workload), wrt=nnx.Param)
    x, y = jax.device_put(examples(workload))

    @nnx.jit
    def step(model: Any, optimizer: Any, x: Any, y: Any) -> Any:
        loss, grads = nnx.value_and_grad(lambda m: cross_entropy(m(x), y))(model)
        optimizer.update(model, grads)
        return loss

    def run(steps: int) -> float:
        loss: Any = None
        for _ in range(steps):
            loss = step(model, optimizer, x, y)
        jax.block_until_ready(nnx.state(model))
        return float(loss)

    return Job(lambda: count(nnx.state(model, nnx.Param)), run, jax.devices()[0].device_kind,
               f"flax {flax.__version__}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    flags = parser.parse_args()
    serve(lambda: build(flags.workload))
