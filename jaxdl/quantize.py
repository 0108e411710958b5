"""Weights as small integers, and what a network loses by it.

A kernel w [..., outputs] is rounded for each output channel (Krishnamoorthi 2018,
https://arxiv.org/abs/1806.08342, section 2.2), with L = 2 ** (bits - 1) - 1:

    w ~ scale * q    scale = max |w| / L    q = round(w / scale), one of -L ... L

All else (biases, statistics, tables) stays as it is.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from jaxdl.config import Between, Regex
from jaxdl.evaluate import Evaluate
from jaxdl.task import Batch, Mean, TrainState, matching, named

Array = jax.Array
Bits = Annotated[int, Between(2, 8)]
KERNELS = (".*kernel",)


def quantize(params: Any, bits: int = 8, only: tuple[str, ...] = KERNELS) -> tuple[Any, Any]:
    """(integers, scales), two trees like that of the parameters: an int8 kernel and its scales
    [outputs], or an array as it was and None.

    Args:
      params: of a network, by path.
      bits: of each weight, 2 to 8; fewer than 8 are held in int8 too.
      only: regexes of the parameters that are rounded, of those of two and more dimensions.
    """
    matching([path for path, x in named(params).items() if x.ndim >= 2], only, "only")
    ints = _mapped(lambda x: _steps(x, bits)[0].astype(jnp.int8), params, only)
    scales = _mapped(lambda x: _steps(x, bits)[1], params, only, lambda x: None)
    return ints, scales


def dequantize(ints: Any, scales: Any) -> Any:
    """The parameters that (integers, scales) stand for."""
    return jax.tree.map(lambda q, scale: q if scale is None else q.astype(scale.dtype) * scale,
                        ints, scales)


def rounded(params: Any, bits: int = 8, only: tuple[str, ...] = KERNELS) -> Any:
    """dequantize(quantize(params)), where NaN stays NaN, and of any part of the parameters."""
    def nearest(x: Array) -> Array:
        steps, scale = _steps(x, bits)
        return (steps * scale).astype(x.dtype)

    return _mapped(nearest, params, only)


def rounded_state(state: TrainState, bits: int, only: tuple[str, ...] = KERNELS) -> TrainState:
    """The state with all parameters that may be evaluated rounded."""
    return dataclasses.replace(state, **{
        name: rounded(getattr(state, name), bits, only) for name in ("params", "frozen", "ema")})


def size(params: Any, bits: int, only: tuple[str, ...] = KERNELS) -> int:
    """Bytes of the quantized parameters: packed integers, scales, and all else as it is."""
    def of(path: str, x: Any) -> int:
        if not _chosen(path, x, only):
            return x.size * x.dtype.itemsize
        return -(-x.size * bits // 8) + x.shape[-1] * x.dtype.itemsize

    return sum(of(path, x) for path, x in named(params).items())


def _steps(w: Array, bits: int) -> tuple[Array, Array]:
    """(q, scale [outputs]) of one kernel; q is not an integer yet, as NaN has none."""
    most = 2 ** (bits - 1) - 1
    scale = jnp.abs(w).max(range(w.ndim - 1)) / most
    scale = jnp.where(scale == 0, 1, scale).astype(w.dtype)
    return jnp.round(w / scale), scale


def _chosen(path: str, x: Any, only: tuple[str, ...]) -> bool:
    return x.ndim >= 2 and any(re.fullmatch(pattern, path) for pattern in only)


def _mapped(function: Any, params: Any, only: tuple[str, ...], other: Any = lambda x: x) -> Any:
    """The tree of function(kernel) and other(rest)."""
    return jax.tree_util.tree_map_with_path(lambda path, x: (function if _chosen(
        jax.tree_util.keystr(path, simple=True, separator="/"), x, only) else other)(x), params)


@dataclass(frozen=True, kw_only=True)
class Quantized(Evaluate):
    """The task's metrics after its weights are rounded, as a network that was trained without
    regard to it loses them; and "bytes", the size of the rounded parameters.

    Attributes:
      bits: of each weight.
      only: regexes of the parameters that are rounded, of those of two and more dimensions.
    """

    bits: Bits = 8
    only: tuple[Regex, ...] = KERNELS

    def measure(self, task: Any, state: Any, batch: Batch) -> Mapping[str, Mean]:
        params = {**named(state.params), **named(state.frozen)}
        matching([path for path, x in params.items() if x.ndim >= 2], self.only, "evals.*.only")
        once = jnp.float32(1)
        return {**task.evaluate(rounded_state(state, self.bits, self.only), batch),
                "bytes": Mean(once * size(params, self.bits, self.only), once)}
