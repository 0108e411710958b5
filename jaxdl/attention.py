"""Attention, in the forms that XLA computes fastest.

softmax(q k^T / sqrt(D)) v: Vaswani et al. (2017), https://arxiv.org/abs/1706.03762, section 3.2.1.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxdl.layers import Dropout

Array = jax.Array
LEAST = -1e30  # a score of what is not seen; finite, so that a row that sees nothing is no NaN


def attention(q: Array, k: Array, v: Array, *, causal: bool, mask: Array | None = None,
              dropout: Dropout | None = None, train: bool = False) -> Array:
    """Attention of q [B, T, heads, D] to k and v [B, S, kv_heads, D]: [B, T, heads, D].

    Scores and softmax are float32 (or float64). Each head of k and v serves heads / kv_heads ones
    of q in a row (Ainslie et al. 2023, section 2.2). On CPU the gradient is written out, elsewhere
    it is JAX's own.

    Args:
      q: queries.
      k: keys.
      v: values.
      causal: query t sees keys 0 ... t only.
      mask: bool [B, T or 1, S], what a query sees; None for all.
      dropout: of the weights.
      train: whether to apply it.
    """
    batch, length, heads, width = q.shape
    dropped = dropout is not None and dropout.rate is not None and train
    if not dropped and jax.default_backend() != "cpu":
        return jax.nn.dot_product_attention(
            q, k, v, mask=None if mask is None else mask[:, None], is_causal=causal)
    if k.shape[2] != heads:
        k, v = (jnp.repeat(x, heads // k.shape[2], 2) for x in (k, v))
    allowed = jnp.tril(jnp.ones((length, k.shape[1]), bool))[None] if causal else None
    if mask is not None:
        allowed = mask if allowed is None else allowed & mask
    factor = None
    if dropout is not None and dropped:
        factor = dropout(jnp.ones((batch * heads, length, k.shape[1]), q.dtype), train)
    if jax.default_backend() == "cpu":
        return attend(q, k, v, allowed, factor)
    scores = jnp.einsum("bthd,bshd->bhts", q, k,
                        preferred_element_type=jnp.promote_types(q.dtype, jnp.float32))
    found = weights(scores, width, None if allowed is None else allowed[:, None]).astype(q.dtype)
    if factor is not None:
        found = found * factor.reshape(found.shape)
    return jnp.einsum("bhts,bshd->bthd", found, v)


def weights(scores: Array, width: int, allowed: Array | None) -> Array:
    """softmax(scores / sqrt(width)) over the last axis, where it is allowed."""
    scores = scores * width ** -0.5
    return jax.nn.softmax(scores if allowed is None else jnp.where(allowed, scores, LEAST))


# On CPU, with the gradient written out for the reasons that `matmul` gives.


@jax.custom_vjp
def attend(q: Array, k: Array, v: Array, allowed: Array | None, factor: Array | None) -> Array:
    """The attention of all heads; allowed [B or 1, T, S], factor [B * heads, T, S]."""
    return _forward(q, k, v, allowed, factor)[0]


def _forward(q: Array, k: Array, v: Array, allowed: Array | None,
             factor: Array | None) -> tuple[Array, Any]:
    batch, _, heads, width = q.shape
    q, k, v = _rows(q), _rows(k), _rows(v)
    scores = _product(q, k, 2)  # [B * heads, T, S]
    if allowed is not None and len(allowed) > 1:
        allowed = jnp.broadcast_to(allowed[:, None], (batch, heads, *allowed.shape[1:]))
        allowed = allowed.reshape(-1, *allowed.shape[2:])
    found = weights(scores, width, allowed).astype(q.dtype)
    kept = found if factor is None else found * factor
    y = _product(kept, v, 1).astype(q.dtype)
    return _unrows(y, heads), (q, k, v, found, factor)


def _backward(saved: Any, g: Array) -> tuple[Array | None, ...]:
    q, k, v, found, factor = saved
    heads = g.shape[2]
    kept = found if factor is None else found * factor
    dweights = _product(_rows(g), v, 2)
    if factor is not None:
        dweights *= factor
    dscores = found * (dweights - jnp.sum(found * dweights, -1, keepdims=True))
    dscores = (dscores * q.shape[2] ** -0.5).astype(q.dtype)
    dq = _product(dscores, k, 1)
    dk = _product(_columns(_unrows(q, heads)), dscores, 1)  # [B * heads, D, S]
    dv = _product(_columns(g), kept, 1)
    dk, dv = (x.astype(q.dtype).reshape(-1, heads, *x.shape[1:]).transpose(0, 3, 1, 2)
              for x in (dk, dv))
    return (_unrows(dq.astype(q.dtype), heads), dk, dv, None,
            None if factor is None else jnp.zeros_like(factor))


def _rows(x: Array) -> Array:
    """[B, T, heads, D] as [B * heads, T, D]."""
    return x.transpose(0, 2, 1, 3).reshape(-1, x.shape[1], x.shape[3])


def _unrows(x: Array, heads: int) -> Array:
    return x.reshape(-1, heads, *x.shape[1:]).swapaxes(1, 2)


def _columns(x: Array) -> Array:
    """[B, T, heads, D] as [B * heads, D, T]."""
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[3], x.shape[1])


def _product(a: Array, b: Array, axis: int) -> Array:
    """Contracts the last axis of a with that axis of b, the first being common, in float32."""
    y = lax.dot_general(a, b, (((2,), (axis,)), ((0,), (0,))),
                        preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))
    return lax.optimization_barrier(y)  # as in `matmul.contract`


attend.defvjp(_forward, _backward)
