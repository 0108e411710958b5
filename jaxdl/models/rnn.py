"""Recurrent language models."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxdl.config import Fraction, Size
from jaxdl.layers import Dropout
from jaxdl.matmul import contract
from jaxdl.models.transformer import Dense

Array = jax.Array


class RNN(nn.Module):
    """Embedding, layers of LSTM (Hochreiter & Schmidhuber 1997; Gers et al. 2000), and logits.

    Weights of a layer start uniform within 1 / sqrt(width), the forget gate's bias at one
    (Jozefowicz et al. 2015, section 3.2).

    Attributes:
      vocabulary: number of tokens.
      width: of the state of each layer, H.
      layers: LSTM layers on top of each other.
      embedding: width of a token's embedding.
      dropout: probability of zeroing, in training, an input of a layer or of the head, but never
        of the recurrence (Zaremba et al. 2014); None for none.
    """

    vocabulary: Size = 256
    width: Size = 256
    layers: Size = 1
    embedding: Size = 64
    dropout: Fraction | None = None

    @nn.compact
    def __call__(self, tokens: Array, train: bool) -> Array:
        def uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
            return jax.random.uniform(key, shape, dtype, -1, 1) * self.width ** -0.5

        def forget(key: Array, shape: tuple[int, ...]) -> Array:
            return jnp.zeros(shape).at[self.width:2 * self.width].set(1)

        embedding = self.param("embedding", nn.initializers.normal(1.),
                               (self.vocabulary, self.embedding))
        # A sum over the batch is exact in float32 only, and so is the gradient of this one.
        exact = jnp.promote_types(embedding.dtype, jnp.float32)
        x = embedding.astype(exact)[tokens].astype(embedding.dtype)  # [B, T, E]
        for i in range(self.layers):
            x = Dropout(self.dropout)(x, train).transpose(1, 2, 0)  # [T, E, B]
            kernel = self.param(f"kernel{i + 1}", uniform,
                                (4 * self.width, x.shape[1] + self.width))
            bias = self.param(f"bias{i + 1}", forget, (4 * self.width,))
            x = lstm(kernel, bias, x).transpose(2, 0, 1)  # [B, T, H]
        x = Dropout(self.dropout)(x, train)
        return Dense(self.vocabulary, self.width ** -0.5, bias=True, name="head")(x)  # [B, T, V]


@jax.custom_vjp
def lstm(kernel: Array, bias: Array, x: Array) -> Array:
    """The states h_1 ... h_T of an LSTM that starts at zero: x [T, K, B], result [T, H, B].

    With [i, f, g, o] = kernel [x_t, h_{t-1}] + bias, kernel [4 H, K + H]:
    c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g) and h_t = sigmoid(o) tanh(c_t).

    The batch is the last axis, so that the weights are the left operand of each product: XLA on
    CPU rearranges the right one every time, and that is the smaller one then. The gradient is
    written out. Its loop keeps only what depends on the next step; the gradient of the kernel, one
    large product over all steps, comes after it.
    """
    return _forward(kernel, bias, x)[0]


def _forward(kernel: Array, bias: Array, x: Array) -> tuple[Array, Any]:
    def step(state: tuple[Array, Array], x_t: Array) -> Any:
        h, c = state
        z = contract(kernel, jnp.concatenate([x_t, h]), 0) + bias[:, None]
        i, f, g, o = jnp.split(z, 4)
        i, f, g, o = _sigmoid(i), _sigmoid(f), jnp.tanh(g), _sigmoid(o)
        c = f * c + i * g
        h = (o * jnp.tanh(c)).astype(x.dtype)
        return (h, c), (h, c, jnp.concatenate([i, f, g, o]))

    h = jnp.zeros((len(bias) // 4, x.shape[2]), x.dtype)
    c = h.astype(jnp.promote_types(x.dtype, jnp.float32))
    _, (h, c, gates) = lax.scan(step, (h, c), x)
    return h, (kernel, bias, x, h, c, gates)


def _backward(saved: Any, dh: Array) -> tuple[Array, Array, Array]:
    kernel, bias, x, h, c, gates = saved
    before = lambda a: jnp.concatenate([jnp.zeros_like(a[:1]), a[:-1]])  # noqa: E731
    transposed = lax.optimization_barrier(kernel.T)  # once, and not at every step

    def step(carry: tuple[Array, Array], at: tuple[Array, ...]) -> Any:
        dh, dc = carry
        dh_t, c, c_t, gates = at
        i, f, g, o = jnp.split(gates, 4)
        tanh = jnp.tanh(c_t)
        dh = dh + dh_t
        dc = dc + dh * o * (1 - tanh ** 2)
        dz = jnp.concatenate([dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g ** 2),
                              dh * tanh * o * (1 - o)]).astype(x.dtype)
        dx, dh = jnp.split(contract(transposed, dz, 0), [x.shape[1]])
        return (dh, dc * f), (dx.astype(x.dtype), dz)

    zeros = jnp.zeros_like(c[0])
    _, (dx, dz) = lax.scan(step, (zeros, zeros), (dh, before(c), c, gates), reverse=True)
    dz, inputs = _rows(dz), jnp.concatenate([_rows(x), _rows(before(h))])
    return (contract(dz, inputs, 1).astype(kernel.dtype),
            jnp.sum(dz, 1, dtype=c.dtype).astype(bias.dtype), dx)


lstm.defvjp(_forward, _backward)


def _rows(x: Array) -> Array:
    """[T, K, B] as [K, T * B]."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)


def _sigmoid(z: Array) -> Array:
    """By tanh, which XLA computes without a division."""
    return 0.5 * jnp.tanh(0.5 * z) + 0.5
