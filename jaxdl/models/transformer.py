"""Decoder-only Transformer for language models, in the form of GPT-2."""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxdl.config import Fraction, Size
from jaxdl.errors import UserError
from jaxdl.layers import Dropout
from jaxdl.matmul import matmul
from jaxdl.task import REMAT, Remat

Array = jax.Array


class Transformer(nn.Module):
    """GPT: embeddings of tokens and positions, blocks, a last layer norm, and logits.

    Radford et al. (2019), section 2.3: each block is x + attention(norm(x)), then x + MLP(norm(x)),
    with causal attention and an MLP of 4 x width units and GELU (its tanh form). Weights start
    normal with deviation 0.02, those of the products that end a branch with 0.02 / sqrt(2 layers).

    The default, with a vocabulary of 65, is the model that nanoGPT trains on Shakespeare's
    characters: 10,745,088 parameters, of which 98,304 for positions; 10,770,816 with biases.

    The residual stream, statistics, softmax and all sums are float32; parameters in bfloat16 make
    the inputs of products so.

    Attributes:
      vocabulary: number of tokens.
      layers: number of blocks.
      width: of the residual stream, D.
      heads: attention heads, each of width / heads.
      block: the most tokens that it sees at once; shorter sequences are fine.
      dropout: probability of zeroing, in training, a value of the embeddings, of an attention's
        weights or of a branch's output; None for none.
      bias: add biases to products and norms, as GPT-2 does.
      tied: the head's weights are the token embeddings.
      scan: stack the parameters of the blocks, [layers, ...], and loop over them: as fast to
        compile for 100 layers as for one.
      remat: what the backward pass recomputes of each block, as `LossTask.remat` does of a loss.
    """

    vocabulary: Size = 256
    layers: Size = 6
    width: Size = 384
    heads: Size = 6
    block: Size = 256
    dropout: Fraction | None = None
    bias: bool = False
    tied: bool = True
    scan: bool = False
    remat: Remat | None = None

    bfloat16_on_cpu: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise UserError(f"Transformer: width={self.width} is not a multiple of "
                            f"heads={self.heads}.")

    @nn.compact
    def __call__(self, tokens: Array, train: bool) -> Array:
        length = tokens.shape[1]  # tokens  # [B, T]
        if length > self.block:
            raise UserError(f"Transformer: {length} tokens in a sequence, but block={self.block}.")
        embedding = self.param("embedding", normal(0.02), (self.vocabulary, self.width))
        positions = self.param("positions", normal(0.02), (self.block, self.width))
        # A sum over the batch is exact in float32 only, and so are the gradients of these two.
        exact = jnp.promote_types(embedding.dtype, jnp.float32)
        x = embedding.astype(exact)[tokens] + positions.astype(exact)[:length]
        x = Dropout(self.dropout)(x, train)  # [B, T, D]

        block: Any = Block
        if self.remat is not None:
            block = nn.remat(Block, policy=REMAT[self.remat], prevent_cse=not self.scan,
                             static_argnums=(2,))
        options = dict(heads=self.heads, layers=self.layers, dropout=self.dropout, bias=self.bias)
        if self.scan:
            blocks = nn.scan(lambda module, x, _: (module(x, train), None), length=self.layers,
                             variable_axes={"params": 0},
                             split_rngs={"params": True, "dropout": True})
            x, _ = blocks(block(**options, name="blocks"), x, None)
        else:
            for i in range(self.layers):
                x = block(**options, name=f"block{i + 1}")(x, train)

        x = norm(self.bias, "norm")(x)
        if self.tied:
            return matmul(x.astype(embedding.dtype), embedding, transposed=True)  # [B, T, V]
        return Dense(self.vocabulary, 0.02, bias=False, name="head")(x)


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); x [B, T, D]."""

    heads: int
    layers: int
    dropout: float | None
    bias: bool

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        length, width = x.shape[1:]
        last = 0.02 / (2 * self.layers) ** 0.5
        y = norm(self.bias, "norm1")(x)
        y = Dense(3 * width, 0.02, self.bias, name="query_key_value")(y)
        q, k, v = jnp.moveaxis(y.reshape(-1, length, 3, self.heads, width // self.heads), 2, 0)
        y = attention(q, k, v, Dropout(self.dropout), train)  # [B, T, heads, D / heads]
        y = Dense(width, last, self.bias, name="project")(y.reshape(x.shape))
        x = x + Dropout(self.dropout)(y, train)
        y = norm(self.bias, "norm2")(x)
        y = nn.gelu(Dense(4 * width, 0.02, self.bias, name="dense1")(y))
        y = Dense(width, last, self.bias, name="dense2")(y)
        return x + Dropout(self.dropout)(y, train)


class Dense(nn.Module):
    """x W + b: x [B, T, K] in the type of W, b added in float32; W starts normal."""

    features: int
    deviation: float
    bias: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", normal(self.deviation), (x.shape[-1], self.features))
        y = matmul(x.astype(kernel.dtype), kernel)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            exact = jnp.promote_types(y.dtype, jnp.float32)  # so that the bias's gradient is, too
            y = (y.astype(exact) + bias.astype(exact)).astype(y.dtype)
        return y


def norm(bias: bool, name: str) -> nn.LayerNorm:
    """Layer normalisation (Ba et al. 2016) over the last axis, epsilon 1e-5, with a scale."""
    return nn.LayerNorm(epsilon=1e-5, use_bias=bias, name=name)


def normal(deviation: float) -> nn.initializers.Initializer:
    return nn.initializers.normal(deviation)


def attention(q: Array, k: Array, v: Array, dropout: Dropout, train: bool) -> Array:
    """Causal attention softmax(q k^T / sqrt(D)) v; q, k, v and the result [B, T, heads, D].

    Vaswani et al. (2017), section 3.2.1. Scores and softmax are float32, `dropout` is applied to
    the weights. On CPU the gradient is written out, elsewhere it is JAX's own.
    """
    batch, length, heads, _ = q.shape
    if dropout.rate is not None and train:
        factor = dropout(jnp.ones((batch * heads, length, length), q.dtype), train)
    else:
        factor = None
    if jax.default_backend() == "cpu":
        return _attend(q, k, v, factor)
    if factor is None:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True)
    scores = jnp.einsum("bthd,bshd->bhts", q, k,
                        preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    weights = _weights(scores, q.shape[3]).astype(q.dtype)
    return jnp.einsum("bhts,bshd->bthd", weights * factor.reshape(weights.shape), v)


def _weights(scores: Array, width: int) -> Array:
    """softmax(scores / sqrt(width)) over positions up to the row's own; scores [..., T, T]."""
    allowed = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jax.nn.softmax(jnp.where(allowed, scores * width ** -0.5, -jnp.inf))


# Attention on CPU, with its gradient written out for the reasons that `matmul` gives.


@jax.custom_vjp
def _attend(q: Array, k: Array, v: Array, factor: Array | None) -> Array:
    return _attend_forward(q, k, v, factor)[0]


def _attend_forward(q: Array, k: Array, v: Array, factor: Array | None) -> tuple[Array, Any]:
    shape = q.shape
    q, k, v = _rows(q), _rows(k), _rows(v)
    weights = _weights(_product(q, k, 2), shape[3]).astype(q.dtype)  # [B * heads, T, T]
    kept = weights if factor is None else weights * factor
    y = _product(kept, v, 1).astype(q.dtype)
    return _unrows(y, shape), (q, k, v, weights, factor)


def _attend_backward(saved: Any, g: Array) -> tuple[Array, Array, Array, Array | None]:
    q, k, v, weights, factor = saved
    kept = weights if factor is None else weights * factor
    dweights = _product(_rows(g), v, 2)
    if factor is not None:
        dweights *= factor
    dscores = weights * (dweights - jnp.sum(weights * dweights, -1, keepdims=True))
    dscores = (dscores * q.shape[2] ** -0.5).astype(q.dtype)
    dq = _product(dscores, k, 1)
    dk = _product(_columns(_unrows(q, g.shape)), dscores, 1)  # [B * heads, D, T]
    dv = _product(_columns(g), kept, 1)
    batch, length, heads, width = g.shape
    dk, dv = (x.astype(q.dtype).reshape(batch, heads, width, length).transpose(0, 3, 1, 2)
              for x in (dk, dv))
    return (_unrows(dq.astype(q.dtype), g.shape), dk, dv,
            None if factor is None else jnp.zeros_like(factor))


def _rows(x: Array) -> Array:
    """[B, T, heads, D] as [B * heads, T, D]."""
    return x.transpose(0, 2, 1, 3).reshape(-1, x.shape[1], x.shape[3])


def _unrows(x: Array, shape: tuple[int, ...]) -> Array:
    batch, length, heads, width = shape
    return x.reshape(batch, heads, length, width).swapaxes(1, 2)


def _columns(x: Array) -> Array:
    """[B, T, heads, D] as [B * heads, D, T]."""
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[3], x.shape[1])


def _product(a: Array, b: Array, axis: int) -> Array:
    """Contracts the last axis of a with that axis of b, the first being common, in float32."""
    y = lax.dot_general(a, b, (((2,), (axis,)), ((0,), (0,))),
                        preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))
    return lax.optimization_barrier(y)  # as in `matmul.contract`


_attend.defvjp(_attend_forward, _attend_backward)
