"""The matrix product of dense layers over sequences, in the forms that XLA computes fastest."""

import re
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

Array = jax.Array


def matmul(x: Array, w: Array, *, transposed: bool = False) -> Array:
    """x w, or x w^T if `transposed`: x [B, T, K], w [K, N] or [N, K]: [B, T, N], of the type of x.

    Sums are float32 whatever the type of x, as on GPUs and TPUs, where this is the plain product.
    On CPU its gradients are written out. For that of w XLA contracts the rows of two matrices,
    and has no kernel for this in bfloat16: it widens both to float32 first, at half the rate or
    less. A transposed copy of one operand is cheap, and the product is then of the usual form.
    """
    if jax.default_backend() != "cpu":
        return jnp.matmul(x, w.T if transposed else w)
    # By this name `task.REMAT` knows it; a policy does not look into functions with own gradients.
    return checkpoint_name(_matmul(x, w, transposed), "product")


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(x: Array, w: Array, transposed: bool) -> Array:
    return contract(x, w, 1 if transposed else 0).astype(x.dtype)


def _forward(x: Array, w: Array, transposed: bool) -> tuple[Array, tuple[Array, Array]]:
    return _matmul(x, w, transposed), (x, w)


def _backward(transposed: bool, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, w = saved
    rows, others = (g, x) if transposed else (x, g)
    others = others.reshape(-1, others.shape[2])
    if x.dtype.itemsize >= 4:
        dw = lax.dot(rows.reshape(-1, rows.shape[2]).T, others)
    else:
        # Of the three axes, so that XLA really moves the data, and not only the name of the axes.
        dw = contract(rows.transpose(2, 0, 1).reshape(rows.shape[2], -1), others, 0)
    return contract(g, w, 0 if transposed else 1).astype(x.dtype), dw.astype(w.dtype)


_matmul.defvjp(_forward, _backward)


def narrow(x: Array, w: Array, dimensions: Any, **options: Any) -> Array:
    """x w of small matrices, x [B, K] and w [K, N], for `nn.Dense(dot_general=narrow)`.

    On CPU its gradient of w contracts a transposed copy of x. Up to some hundred columns this takes
    a third of the time of what XLA makes of the usual form; of wide ones it takes longer.
    """
    if jax.default_backend() != "cpu" or x.ndim != 2:
        return lax.dot_general(x, w, dimensions, **options)
    return _narrow(x, w)


@jax.custom_vjp
def _narrow(x: Array, w: Array) -> Array:
    return x @ w


def _narrow_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, w = saved
    return g @ w.T, lax.optimization_barrier(x.T) @ g  # else XLA would rename the axes, not move


_narrow.defvjp(lambda x, w: (x @ w, (x, w)), _narrow_backward)


def contract(a: Array, b: Array, axis: int) -> Array:
    """Contracts the last axis of a [..., K] with that axis of b, [K, N] or [N, K], in float32."""
    y = lax.dot_general(a, b, (((a.ndim - 1,), (axis,)), ((), ())),
                        preferred_element_type=jnp.promote_types(a.dtype, jnp.float32))
    # XLA on CPU computes float32 sums of bfloat16 products only if nobody transposes the result.
    return lax.optimization_barrier(y)


def fast_dtype(model: nn.Module | None) -> str:
    """"bfloat16" where this model's products are faster in it, else "float32".

    Told by what the hardware is, not by timing it, so that a run can be repeated: TPUs, NVIDIA
    GPUs from compute capability 8.0, and x86 CPUs with AVX512_BF16 or AMX_BF16. On those XLA
    widens most products and all convolutions to float32 again, so only models that say
    `bfloat16_on_cpu = True`, because they go through `matmul`, gain.
    """
    device = jax.devices()[0]
    if device.platform == "tpu":
        return "bfloat16"
    if device.platform == "gpu":
        capability = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))
        return "bfloat16" if capability and int(capability[1]) >= 8 else "float32"
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if getattr(model, "bfloat16_on_cpu", False) and info.exists() else ""
    return "bfloat16" if re.search(r"\b(avx512_bf16|amx_bf16)\b", flags) else "float32"
