"""Recurrence over a sequence: the loop of every recurrent network, with its gradient written out.

A cell is a pure function cell(state, z) -> state of what does not mix units: state is a tuple of
arrays [H, B], the first of which is the output h, and z = kernel [x_t, h_{t-1}] + bias, [G, B], the
one product of a step. So the loop and its gradient are the same for all cells.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxdl.matmul import contract

Array = jax.Array
State = tuple[Array, ...]
Cell = Callable[[State, Array], State]


def simple(state: State, z: Array) -> State:
    """h_t = tanh(z): Elman (1990). z [H, B]."""
    return (jnp.tanh(z).astype(state[0].dtype),)


@jax.custom_vjp
def lstm(state: State, z: Array) -> State:
    """[i, f, g, o] = z [4 H, B]: c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g) and h_t = sigmoid(o)
    tanh(c_t): Hochreiter & Schmidhuber (1997), with the forget gate of Gers et al. (2000)."""
    return _lstm(state, z)[0]


def _lstm(state: State, z: Array) -> tuple[State, Any]:
    h, c = state
    i, f, g, o = jnp.split(z, 4)
    i, f, g, o = sigmoid(i), sigmoid(f), jnp.tanh(g), sigmoid(o)
    new = (f * c + i * g).astype(c.dtype)
    tanh = jnp.tanh(new)
    return ((o * tanh).astype(h.dtype), new), (c, tanh, jnp.concatenate([i, f, g, o]))


def _lstm_backward(saved: Any, grads: State) -> tuple[State, Array]:
    """Written out, so that as little as can be is kept of each step: a fifth of the time."""
    c, tanh, gates = saved
    dh, dc = grads
    i, f, g, o = jnp.split(gates, 4)
    dc = dc + dh * o * (1 - tanh ** 2)
    dz = jnp.concatenate([dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g ** 2),
                          dh * tanh * o * (1 - o)])
    return (jnp.zeros_like(dh), (dc * f).astype(c.dtype)), dz


lstm.defvjp(_lstm, _lstm_backward)


def gru(state: State, z: Array) -> State:
    """[r, u, n_x, n_h] = z [4 H, B]: n = tanh(n_x + sigmoid(r) n_h) and h_t = (1 - sigmoid(u)) n +
    sigmoid(u) h_{t-1}: Cho et al. (2014), with the reset gate after the product, as cuDNN and
    PyTorch have it. n_x is the part of x alone, and n_h that of h alone."""
    r, u, from_x, from_h = jnp.split(z, 4)
    n, u = jnp.tanh(from_x + sigmoid(r) * from_h), sigmoid(u)
    return ((n + u * (state[0] - n)).astype(state[0].dtype),)


def sigmoid(z: Array) -> Array:
    """By tanh, which XLA computes without a division."""
    return 0.5 * jnp.tanh(0.5 * z) + 0.5


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(cell: Cell, kernel: Array, bias: Array, x: Array, state: State,
          valid: Array | None) -> tuple[Array, State]:
    """(h_1 ... h_T [T, H, B], the last state) of a cell over x [T, K, B].

    The batch is the last axis, so that the weights are the left operand of each product: XLA on
    CPU rearranges the right one every time, and that is the smaller one then. Of the gradient the
    loop keeps only what depends on the next step; that of the kernel, one large product over all
    steps, comes after it.

    Args:
      cell: see above.
      kernel: [G, K + H].
      bias: [G].
      x: inputs, the first axis is time.
      state: before the first step, each [H, B].
      valid: bool [T, B]; where it is not set the state stays as it was. None for everywhere.
    """
    def step(state: State, at: Any) -> Any:
        x_t, valid_t = at
        new = _kept(valid_t, cell(state, _product(kernel, bias, x_t, state[0])), state)
        return new, new[0]

    last, h = lax.scan(step, state, (x, valid))
    return h, last


def _forward(cell: Cell, kernel: Array, bias: Array, x: Array, state: State,
             valid: Array | None) -> Any:
    def step(state: State, at: Any) -> Any:
        x_t, valid_t = at
        # The derivative of the cell is a pytree of what it needs: the loop stacks it.
        new, pullback = jax.vjp(cell, state, _product(kernel, bias, x_t, state[0]))
        new = _kept(valid_t, new, state)
        return new, (new[0], pullback)

    last, (h, pullbacks) = lax.scan(step, state, (x, valid))
    return (h, last), (kernel, bias, x, state, valid, h, pullbacks)


def _backward(cell: Cell, saved: Any, grads: tuple[Array, State]) -> Any:
    kernel, bias, x, state, valid, h, pullbacks = saved
    dh, dlast = grads
    transposed = lax.optimization_barrier(kernel.T)  # once, and not at every step
    inputs = x.shape[1]

    def step(carry: State, at: Any) -> Any:
        dh_t, pullback, valid_t = at
        carry = (carry[0] + dh_t, *carry[1:])
        zeros = tuple(map(jnp.zeros_like, carry))
        dstate, dz = pullback(_kept(valid_t, carry, zeros))
        dz = dz.astype(x.dtype)
        dx, dh = jnp.split(contract(transposed, dz, 0), [inputs])
        dstate = (dstate[0] + dh.astype(dstate[0].dtype), *dstate[1:])
        if valid_t is not None:
            dstate = jax.tree.map(jnp.add, dstate, _kept(valid_t, zeros, carry))
        return dstate, (dx.astype(x.dtype), dz)

    dstate, (dx, dz) = lax.scan(step, dlast, (dh, pullbacks, valid), reverse=True)
    before = jnp.concatenate([state[0][None], h[:-1]])
    dz = _rows(dz)
    exact = jnp.promote_types(x.dtype, jnp.float32)
    return (contract(dz, jnp.concatenate([_rows(x), _rows(before)]), 1).astype(kernel.dtype),
            jnp.sum(dz, 1, dtype=exact).astype(bias.dtype), dx, dstate, None)


recur.defvjp(_forward, _backward)


def _product(kernel: Array, bias: Array, x_t: Array, h: Array) -> Array:
    return contract(kernel, jnp.concatenate([x_t, h]), 0) + bias[:, None]


def _kept(valid: Array | None, new: State, old: State) -> State:
    """The new state where it counts."""
    return new if valid is None else tuple(jnp.where(valid, a, b)
                                           for a, b in zip(new, old, strict=True))


def _rows(x: Array) -> Array:
    """[T, K, B] as [K, T * B]."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)
