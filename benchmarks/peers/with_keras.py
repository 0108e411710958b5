"""The workloads in Keras 3 on JAX: `compile` and `train_on_batch`, with the loss of every step."""

import argparse
import math
import os
from typing import Any

from worker import GPT, LSTM, RESNETS, VOCABULARY, WIDTHS, Job, examples, serve

os.environ["KERAS_BACKEND"] = "jax"
import jax  # isort: skip
import keras
from keras import layers, ops


def resnet(workload: str) -> Any:
    channels, stages = RESNETS[workload]

    def conv(x: Any, channels: int, kernel: int, stride: int) -> Any:
        x = layers.Conv2D(channels, kernel, stride, padding="same", use_bias=False)(x)
        return layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x)

    inputs = keras.Input((32, 32, 3))
    x = layers.ReLU()(conv(inputs, channels, 3, 1))
    for new, blocks, stride in stages:
        for i in range(blocks):
            s = stride if i == 0 else 1
            y = conv(layers.ReLU()(conv(x, new, 3, s)), new, 3, 1)
            x = layers.ReLU()(layers.Add()([y, conv(x, new, 1, s) if x.shape[-1] != new else x]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


class Decoder(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        width = GPT["width"]
        self.tokens = layers.Embedding(VOCABULARY, width)
        self.positions = layers.Embedding(GPT["block"], width)
        self.parts = [(layers.LayerNormalization(epsilon=1e-5), layers.Dense(3 * width),
                       layers.Dense(width), layers.LayerNormalization(epsilon=1e-5),
                       layers.Dense(4 * width), layers.Dense(width))
                      for _ in range(GPT["layers"])]
        self.norm = layers.LayerNormalization(epsilon=1e-5)

    def call(self, x: Any) -> Any:
        heads, width = GPT["heads"], GPT["width"]
        x = self.tokens(x) + self.positions(ops.arange(x.shape[1]))
        for norm1, qkv, out, norm2, up, down in self.parts:
            _, t, d = x.shape
            q, k, v = ops.split(ops.reshape(qkv(norm1(x)), (-1, t, 3 * heads, width // heads)), 3,
                                2)
            y = ops.dot_product_attention(q, k, v, is_causal=True)
            x = x + out(ops.reshape(y, (-1, t, d)))
            x = x + down(ops.gelu(up(norm2(x)), approximate=True))
        return ops.matmul(self.norm(x), ops.transpose(ops.cast(
            self.tokens.embeddings, self.compute_dtype)))


def network(workload: str) -> Any:
    if workload in RESNETS:
        return resnet(workload)
    if workload.startswith("gpt"):
        return Decoder()
    if workload == "lstm":
        return keras.Sequential([
            layers.Embedding(VOCABULARY, LSTM["embedding"]),
            layers.LSTM(LSTM["width"], return_sequences=True), layers.Dense(VOCABULARY)])
    return keras.Sequential([*(layers.Dense(width, "relu") for width in WIDTHS[1:-1]),
                             layers.Dense(WIDTHS[-1])])


def optimizer(workload: str) -> Any:
    if workload.startswith("gpt"):
        return keras.optimizers.AdamW(1e-3, weight_decay=1e-2)
    if workload == "lstm":
        return keras.optimizers.Adam(1e-3)
    return keras.optimizers.SGD(0.01, momentum=0.9)


def build(workload: str) -> Job:
    if workload.endswith("_bf16"):
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model, (x, y) = network(workload), examples(workload)
    model.compile(optimizer(workload), keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                  jit_compile=True)

    def run(steps: int) -> float:
        loss: Any = None
        for _ in range(steps):
            loss = model.train_on_batch(x, y)
        return float(loss)

    def parameters() -> int:
        return sum(math.prod(w.shape) for w in model.trainable_variables)

    return Job(parameters, run, jax.devices()[0].device_kind,
               f"keras {keras.__version__}, jax {jax.__version__}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    flags = parser.parse_args()
    serve(lambda: build(flags.workload))
