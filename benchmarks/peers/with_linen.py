"""The workloads in Flax Linen and Optax, as a user without jaxdl writes them."""

import argparse
from typing import Any

from worker import CNN, GPT, LSTM, RESNETS, VOCABULARY, WIDTHS, Job, examples, serve

import jax  # isort: skip  # after the allocator's settings
import flax
import flax.linen as nn
import jax.numpy as jnp
from optax_step import cross_entropy, job


def norm() -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=False, momentum=0.9)


class ResNet(nn.Module):
    workload: str

    @nn.compact
    def __call__(self, x: Any) -> Any:
        channels, stages = RESNETS[self.workload]

        def conv(x: Any, channels: int, kernel: int, stride: int) -> Any:
            x = nn.Conv(channels, (kernel, kernel), stride, kernel // 2, use_bias=False)(x)
            return norm()(x)

        x = nn.relu(conv(x, channels, 3, 1))
        for new, blocks, stride in stages:
            for i in range(blocks):
                s = stride if i == 0 else 1
                y = conv(nn.relu(conv(x, new, 3, s)), new, 3, 1)
                x = nn.relu(y + (conv(x, new, 1, s) if x.shape[-1] != new else x))
        return nn.Dense(10)(x.mean((1, 2)))


class Decoder(nn.Module):
    dtype: Any

    @nn.compact
    def __call__(self, x: Any) -> Any:
        width, heads, dtype = GPT["width"], GPT["heads"], self.dtype
        tokens = nn.Embed(VOCABULARY, width, dtype=dtype)
        positions = self.param("positions", nn.initializers.normal(0.02), (x.shape[1], width))
        x = tokens(x) + positions.astype(dtype)
        for _ in range(GPT["layers"]):
            qkv = nn.Dense(3 * width, dtype=dtype)(nn.LayerNorm(dtype=dtype)(x))
            q, k, v = jnp.split(qkv.reshape(*x.shape[:2], 3 * heads, width // heads), 3, 2)
            y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
            x = x + nn.Dense(width, dtype=dtype)(y.reshape(x.shape))
            y = nn.gelu(nn.Dense(4 * width, dtype=dtype)(nn.LayerNorm(dtype=dtype)(x)))
            x = x + nn.Dense(width, dtype=dtype)(y)
        return tokens.attend(nn.LayerNorm(dtype=dtype)(x))


class CharRNN(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Embed(VOCABULARY, LSTM["embedding"])(x)
        return nn.Dense(VOCABULARY)(nn.RNN(nn.OptimizedLSTMCell(LSTM["width"]))(x))


class MLP(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        for width in WIDTHS[1:-1]:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(WIDTHS[-1])(x)


class SmallCNN(nn.Module):
    @nn.compact
    def __call__(self, x: Any) -> Any:
        for channels in CNN[1:]:
            x = nn.relu(nn.Conv(channels, (3, 3), 2, 1)(x))
        return nn.Dense(10)(x.mean((1, 2)))


def network(workload: str) -> nn.Module:
    if workload in RESNETS:
        return ResNet(workload)
    if workload.startswith("gpt"):
        return Decoder(jnp.bfloat16 if workload.endswith("_bf16") else jnp.float32)
    return {"lstm": CharRNN, "mlp": MLP, "cnn": SmallCNN}[workload]()


def build(workload: str) -> Job:
    model, (x, y) = network(workload), examples(workload)
    variables = jax.jit(model.init)(jax.random.key(0), x[:1])

    def loss(params: Any, statistics: Any, x: Any, y: Any) -> Any:
        logits, new = model.apply({"params": params, **statistics}, x, mutable=list(statistics))
        return cross_entropy(logits, y), dict(new)

    params = variables["params"]
    statistics = {name: tree for name, tree in variables.items() if name != "params"}
    return job(workload, loss, params, statistics, (x, y), f"flax {flax.__version__}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    flags = parser.parse_args()
    serve(lambda: build(flags.workload))
