"""Convolution in two dimensions, computed in the form that is fastest on the CPU at hand.

XLA's convolutions on CPU are slow in places: the gradient in the weights becomes a convolution with
a window as large as the image (a fifth of the processor's rate); before jax 0.11 the forward one
runs on a single thread at 32 and 64 channels; in a loop (scan, while, map) gradients take 3 to 95
times as long as outside; under `vmap` over weights they turn into grouped convolutions; and those
with a group for each channel (depthwise) take 9 to 29 times as long as sums over their places.
`convolve` computes the same function from parts that are fast, each within 1e-5 of the largest
value of the exact result. (Of the weight gradient over 128 images of 32 x 32 with 64 channels the
plain form is off by 1.2e-5, "winograd_dot" by 2.1e-6.) The parts:

- "plain": `lax.conv_general_dilated` and its gradients;
- "stored": the same of arrays that lie in memory. Else XLA computes the layer before anew inside
  the weight gradient, at strided places (with jax 0.12 a ResNet-20 step takes 1.3 times as long,
  with 0.10 as long);
- "winograd": F(4 x 4, 3 x 3) of Lavin & Gray (2015), https://arxiv.org/abs/1509.09308, section 4,
  for 3 x 3 kernels of stride 1: a quarter of the multiplications, as 36 matrix products. Its
  weight gradient is the transposed algorithm;
- "winograd_dot": the same, with the transforms of the tiles written as one matrix product each
  instead of as sums: slower or as fast, and quicker to compile;
- "patches": the windows side by side in a matrix, and one matrix product;
- `depthwise`, where each channel has a group of its own: the sum, over the places of the kernel, of
  what lies there times its weight; and what JAX derives from it.

The choice is a function of the static shapes (`choose`), which follows measurements of
`benchmarks/conv.py`; of how often the program will run, because sums compile longer; and of whether
it is traced inside a loop (`jaxdl.tracing`). On other backends, for other types than float32 (and
float64, if depthwise), other numbers of dimensions, other groups and dilation it is always the
plain one. The training log names the forms that were chosen.

Gradients of any order in reverse mode are defined, by the same forms. Forward mode (`jax.jvp`,
`jax.hessian`) is defined of `depthwise` alone, and JAX says so: inside `with conv.plain():`, or
with JAXDL_CONV=plain in the environment, everything is plain.
"""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxdl import tracing
from jaxdl.errors import UserError, nearest

Array = jax.Array
Form = Literal["plain", "stored", "patches", "winograd", "winograd_dot"]
Pair = tuple[int, int]

ENVIRONMENT = "JAXDL_CONV"
LAYOUT = ("NHWC", "HWIO", "NHWC")

_plain: ContextVar[bool] = ContextVar("plain", default=False)


class Forms(NamedTuple):
    """How each of the three is computed: the output, and the gradients in the input and weights."""

    forward: Form
    input: Form
    weight: Form


class Window(NamedTuple):
    """All that is static in y = convolution of x [N, H, W, C] by w [kh, kw, C, O]: pairs of ints.

    Attributes:
      size: H and W.
      kernel: kh and kw.
      strides: of the two dimensions.
      padding: low and high zeros of the two dimensions.
      forms: how it is computed.
    """

    size: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[Pair, ...]
    forms: Forms


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Inside, `convolve` is `lax.conv_general_dilated`, differentiable in forward mode too."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def convolve(x: Array, w: Array, strides: Sequence[int], padding: str | Sequence[Pair],
             lhs_dilation: Sequence[int] | None = None, rhs_dilation: Sequence[int] | None = None,
             dimension_numbers: Any = None, feature_group_count: int = 1, **options: Any) -> Array:
    """`lax.conv_general_dilated` with its arguments, in the fastest known form.

    Args:
      x: [N, H, W, C] where another form than the plain one is to be chosen.
      w: [kh, kw, C, O].
      strides: one for each spatial dimension.
      padding: "SAME", "VALID", or (low, high) zeros for each spatial dimension.
      lhs_dilation: other than one: plain.
      rhs_dilation: the same.
      dimension_numbers: other than NHWC, HWIO, NHWC: plain.
      feature_group_count: other than one, and than one group for each of C = O: plain.
      options: precision, preferred_element_type: other than None: plain.

    Raises:
      UserError: JAXDL_CONV is neither "plain" nor "fast".
    """
    groups = feature_group_count
    usual = (
        x.ndim == 4 and x.dtype == w.dtype and 0 not in (*x.shape, *w.shape)
        and (x.dtype == jnp.float32 if groups == 1 else (
            groups == x.shape[-1] == w.shape[-1] and math.prod(w.shape[:2]) <= MOST
            and x.dtype in (jnp.float32, jnp.float64)))
        and all(value is None for value in options.values())
        and {*(lhs_dilation or ()), *(rhs_dilation or ())} <= {1}
        and lax.conv_dimension_numbers(x.shape, w.shape, dimension_numbers)
        == lax.conv_dimension_numbers(x.shape, w.shape, LAYOUT))
    if not (usual and enabled()):
        return lax.conv_general_dilated(
            x, w, strides, padding, lhs_dilation=lhs_dilation, rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers, feature_group_count=groups, **options)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], w.shape[:2], strides, padding)
    now = tracing.current()
    sides = tuple((int(low), int(high)) for low, high in padding)
    if groups > 1:
        if now.notes is not None:
            now.notes.add("depthwise convolutions by sums")
        return depthwise(x, w, strides, sides)
    forms = choose(x.shape, w.shape, tuple(strides), now.runs >= MANY_RUNS, now.loop)
    if now.notes is not None:
        now.notes.update(f"convolutions by {form}" for form in forms
                         if form not in ("plain", "stored"))
    return forward(Window(x.shape[1:3], w.shape[:2], tuple(strides), sides, forms), x, w)


def enabled() -> bool:
    """Whether other forms than the plain one are considered."""
    value = os.environ.get(ENVIRONMENT, "fast")
    if value not in ("plain", "fast"):
        raise UserError(f"{ENVIRONMENT}={value}: expected plain or fast."
                        f"{nearest(value, ('plain', 'fast'))}")
    return value == "fast" and not _plain.get() and jax.default_backend() == "cpu"


# ---- the choice --------------------------------------------------------------------------------

# "winograd" in place of "winograd_dot" costs 3.4 s of compilation in ResNet-18 at batch 128 and, by
# the times of its shapes, saves 0.26 s a step: 13 steps to pay. Where less is won, more are needed.
MANY_RUNS = 200
# Places of a depthwise kernel up to which it is a sum of them: it compiles longer with each.
MOST = 64
# Before jax 0.11 XLA's convolutions with 32 or 64 channels run on one thread.
ONE_THREAD = jax.__version_info__ < (0, 11)


@functools.cache
def choose(x: tuple[int, ...], w: tuple[int, ...], strides: tuple[int, ...], many: bool,
           loop: bool) -> Forms:
    """The fastest forms for x [N, H, W, C] and w [kh, kw, C, O] of these shapes.

    Args:
      x: shape of the input.
      w: shape of the weights.
      strides: of the two dimensions.
      many: whether the program runs often enough for a form that compiles longer.
      loop: whether it is part of a loop.
    """
    if loop:
        return Forms("patches", "patches", "patches")
    n, height, width, _ = x
    few = min(w[2:])
    tiles = n * -(-height // TILE) * -(-width // TILE)
    forms = Forms("plain", "plain", "stored")
    if w[:2] == (3, 3) and strides == (1, 1) and few >= 64:
        if tiles >= 512 and (few >= 128 or ONE_THREAD):
            form: Form = "winograd" if many else "winograd_dot"
            forms = forms._replace(forward=form, input=form)
        if tiles >= 128 and (few >= 128 or tiles >= 2048 or ONE_THREAD):
            forms = forms._replace(weight="winograd_dot")
    elif w[:2] == (1, 1):
        forms = Forms("patches", "patches", "patches")
    elif strides != (1, 1):
        forms = forms._replace(input="patches")
        if ONE_THREAD or few >= 128 or (few >= 64 and tiles >= 2048):
            forms = forms._replace(weight="patches")
    return forms


# ---- the three linear maps, and their derivatives ------------------------------------------------
# y = conv(x, w) is linear in x and in w, so that each derivative is one of the same three maps.

@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def forward(window: Window, x: Array, w: Array) -> Array:
    """The convolution of x [N, H, W, C] by w [kh, kw, C, O]: [N, H', W', O]."""
    return batched(functools.partial(FORWARD[window.forms.forward], window),
                   functools.partial(patches_forward, window), fold=True)(x, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def input_gradient(window: Window, g: Array, w: Array) -> Array:
    """The gradient of <forward(x, w), g> in x, from g [N, H', W', O]: [N, H, W, C]."""
    return batched(functools.partial(INPUT[window.forms.input], window),
                   functools.partial(patches_input, window), fold=True)(g, w)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def weight_gradient(window: Window, x: Array, g: Array) -> Array:
    """The gradient of <forward(x, w), g> in w: [kh, kw, C, O]."""
    return batched(functools.partial(WEIGHT[window.forms.weight], window),
                   functools.partial(patches_weight, window), fold=False)(x, g)


forward.defvjp(lambda window, x, w: (forward(window, x, w), (x, w)), lambda window, xw, g: (
    input_gradient(window, g, xw[1]), weight_gradient(window, xw[0], g)))
input_gradient.defvjp(lambda window, g, w: (input_gradient(window, g, w), (g, w)),
                      lambda window, gw, x: (forward(window, x, gw[1]),
                                             weight_gradient(window, x, gw[0])))
weight_gradient.defvjp(lambda window, x, g: (weight_gradient(window, x, g), (x, g)),
                       lambda window, xg, w: (input_gradient(window, xg[1], w),
                                              forward(window, xg[0], w)))


def batched(compute: Callable[[Array, Array], Array], patches: Callable[[Array, Array], Array],
            fold: bool) -> Callable[[Array, Array], Array]:
    """`compute`, which under `vmap` becomes the patch form, whose products stay products.

    Args:
      compute: of two arrays.
      patches: the same function in the patch form.
      fold: where only the first array has the new axis, it is a part of N, and `compute` stays.
    """
    mapped = custom_vmap(compute)

    @mapped.def_vmap
    def rule(size: int, axes: Sequence[bool], a: Array, b: Array) -> tuple[Array, bool]:
        if fold and not axes[1]:
            y = mapped(a.reshape(-1, *a.shape[2:]), b)
            return y.reshape(size, -1, *y.shape[1:]), True
        return jax.vmap(patches, [0 if axis else None for axis in axes])(a, b), True

    return mapped


# ---- plain ---------------------------------------------------------------------------------------

def plain_forward(window: Window, x: Array, w: Array) -> Array:
    return lax.conv_general_dilated(x, w, window.strides, window.padding, dimension_numbers=LAYOUT)


def plain_input(window: Window, g: Array, w: Array) -> Array:
    x = jax.ShapeDtypeStruct((g.shape[0], *window.size, w.shape[2]), g.dtype)
    return jax.linear_transpose(lambda x: plain_forward(window, x, w), x)(g)[0]


def stored_weight(window: Window, x: Array, g: Array) -> Array:
    return plain_weight(window, *lax.optimization_barrier((x, g)))


def plain_weight(window: Window, x: Array, g: Array) -> Array:
    w = jax.ShapeDtypeStruct((*window.kernel, x.shape[-1], g.shape[-1]), g.dtype)
    return jax.linear_transpose(lambda w: plain_forward(window, x, w), w)(g)[0]


# ---- depthwise -----------------------------------------------------------------------------------

def depthwise(x: Array, w: Array, strides: Sequence[int], padding: Sequence[Pair]) -> Array:
    """The convolution of each channel of x [N, H, W, C] by its own kernel of w [kh, kw, 1, C].

    Input and output are stored: else XLA may compute the layer before anew for each place of the
    kernel.
    """
    x = lax.optimization_barrier(x)
    sides = [(low, high, 0) for low, high in padding]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *sides, (0, 0, 0)))
    ends = [size - k + 1 for size, k in zip(x.shape[1:3], w.shape[:2], strict=True)]
    parts = (x[:, i:ends[0] + i:strides[0], j:ends[1] + j:strides[1]] * w[i, j, 0]
             for i, j in np.ndindex(*w.shape[:2]))
    return lax.optimization_barrier(functools.reduce(jnp.add, parts))


# ---- patches -------------------------------------------------------------------------------------

def patches(x: Array, kernel: Sequence[int], strides: Sequence[int],
            padding: Sequence[Pair]) -> Array:
    """The windows of x [N, H, W, C]: [N, H', W', kh * kw * C]."""
    sides = [(low, high, 0) for low, high in padding]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *sides, (0, 0, 0)))
    ends = [size - k + 1 for size, k in zip(x.shape[1:3], kernel, strict=True)]
    return jnp.concatenate([x[:, i:ends[0] + i:strides[0], j:ends[1] + j:strides[1]]
                            for i, j in np.ndindex(*kernel)], -1)


def patches_forward(window: Window, x: Array, w: Array) -> Array:
    rows = patches(x, window.kernel, window.strides, window.padding)
    return jnp.tensordot(rows, w.reshape(-1, w.shape[-1]), 1)


def patches_input(window: Window, g: Array, w: Array) -> Array:
    """Forward from g with the kernel turned around, where it is not spread by strides and its
    windows are not larger than those of x. Else the windows of the gradient, added up."""
    if window.strides == (1, 1) and w.shape[2] >= w.shape[3]:
        rows = patches(g, window.kernel, (1, 1), transposed(window))
        return jnp.tensordot(rows, turned(w).reshape(-1, w.shape[2]), 1)
    rows = jnp.tensordot(g, w.reshape(-1, w.shape[-1]), ((3,), (1,)))  # [N, H', W', kh * kw * C]
    parts = jnp.split(rows, math.prod(window.kernel), -1)
    zero, x = jnp.zeros((), g.dtype), jnp.zeros((), g.dtype)
    for place, part in zip(np.ndindex(*window.kernel), parts, strict=True):
        sides = [(i - low, size - i + low - (length - 1) * stride - 1, stride - 1)
                 for i, (low, _), size, length, stride in zip(
                     place, window.padding, window.size, g.shape[1:3], window.strides, strict=True)]
        x += lax.pad(part, zero, ((0, 0, 0), *sides, (0, 0, 0)))
    return x


def patches_weight(window: Window, x: Array, g: Array) -> Array:
    rows = patches(x, window.kernel, window.strides, window.padding)
    rows, g = rows.reshape(-1, rows.shape[-1]), g.reshape(-1, g.shape[-1])
    return (rows.T @ g).reshape(*window.kernel, x.shape[-1], g.shape[-1])


def turned(w: Array) -> Array:
    """w [kh, kw, C, O] rotated by half a turn, with the channels exchanged: [kh, kw, O, C]."""
    return w[::-1, ::-1].swapaxes(2, 3)


def transposed(window: Window) -> list[Pair]:
    """The padding of the gradient that gives `window.size` again, without strides; it may be
    negative."""
    return [(k - 1 - low, k - 1 - high)
            for k, (low, high) in zip(window.kernel, window.padding, strict=True)]


# ---- Winograd ------------------------------------------------------------------------------------
# y = A ((G w G') * (B x B')) A' for each tile of 4 x 4 outputs, from 6 x 6 inputs.

TILE, SPAN = 4, 6


def toom_cook(points: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A [4, 6], B [6, 6] and G [6, 3] of F(4, 3), which multiplies at five points and at infinity.

    Lavin & Gray's appendix, for any points: A and G evaluate polynomials, B interpolates.
    """
    a, b, g = np.zeros((TILE, SPAN)), np.zeros((SPAN, SPAN)), np.zeros((SPAN, 3))
    for i, point in enumerate(points):
        others = [other for other in points if other != point]
        a[:, i] = point ** np.arange(TILE)
        b[i, :5] = np.poly(others)[::-1]
        g[i] = point ** np.arange(3) / np.prod(point - np.array(others))
    a[-1, -1] = g[-1, -1] = 1
    b[-1] = np.poly(points)[::-1]
    return a.astype(np.float32), b.astype(np.float32), g.astype(np.float32)


# With the usual points 0, 1, -1, 2, -2 the largest error at 256 channels is 1.2e-5 of the largest
# value; with these it is 2.7e-6, because their powers and differences are of a size.
A, B, G = toom_cook((0., 0.625, -0.625, 1.5, -1.5))


def sums(matrix: np.ndarray, tiles: Array) -> Array:
    """matrix [p, q] on both sides of tiles [q, q, ...]: [p, p, ...], as sums of its terms."""
    for axis in (0, 1):
        parts = [lax.index_in_dim(tiles, i, axis, keepdims=False) for i in range(tiles.shape[axis])]
        rows = []
        for row in matrix:
            terms = [part if factor == 1 else -part if factor == -1 else float(factor) * part
                     for factor, part in zip(row, parts, strict=True) if factor]
            rows.append(functools.reduce(jnp.add, terms))
        tiles = jnp.stack(rows, axis)
    return tiles


def product(matrix: np.ndarray, tiles: Array) -> Array:
    """The same, as one matrix product."""
    p, q = matrix.shape
    both = jnp.asarray(np.kron(matrix, matrix))  # [p * p, q * q]
    return (both @ tiles.reshape(q * q, -1)).reshape(p, p, *tiles.shape[2:])


Transform = Callable[[np.ndarray, Array], Array]


def winograd_forward(transform: Transform, window: Window, x: Array, w: Array) -> Array:
    (height, width), ((top, bottom), (left, right)) = window.size, window.padding
    size = (height + top + bottom - 2, width + left + right - 2)
    return winograd(transform, x, w, size, (top, left))


def winograd_input(transform: Transform, window: Window, g: Array, w: Array) -> Array:
    (top, _), (left, _) = transposed(window)
    return winograd(transform, g, turned(w), window.size, (top, left))


def winograd_weight(transform: Transform, window: Window, x: Array, g: Array) -> Array:
    _, height, width, o = g.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    (top, _), (left, _) = window.padding
    v = transform(B, spans(x, (rows, columns), (top, left)))  # [6, 6, N * rows * columns * C]
    g = blocks(fit(g, (rows * TILE, columns * TILE), (0, 0)))
    e = transform(A.T, g.reshape(TILE, TILE, -1))
    m = lax.dot_general(v.reshape(SPAN ** 2, -1, x.shape[-1]), e.reshape(SPAN ** 2, -1, o),
                        (((1,), (1,)), ((0,), (0,))))  # [36, C, O]
    return jnp.einsum("ai,abco,bj->ijco", G, m.reshape(SPAN, SPAN, *m.shape[1:]), G)


def winograd(transform: Transform, x: Array, w: Array, size: Sequence[int], start: Pair) -> Array:
    """The convolution whose first window begins `start` before x [N, H, W, C]: [N, *size, O]."""
    n, c, o = x.shape[0], x.shape[-1], w.shape[-1]
    rows, columns = (-(-length // TILE) for length in size)
    v = transform(B, spans(x, (rows, columns), start)).reshape(SPAN ** 2, -1, c)
    u = jnp.einsum("ai,ijco,bj->abco", G, w, G).reshape(SPAN ** 2, c, o)
    m = jnp.matmul(v, u).reshape(SPAN, SPAN, -1)  # [6, 6, N * rows * columns * O]
    y = transform(A, m).reshape(TILE, TILE, n, rows, columns, o)
    y = y.transpose(2, 3, 0, 4, 1, 5).reshape(n, rows * TILE, columns * TILE, o)
    return y[:, :size[0], :size[1]]


def spans(x: Array, count: Pair, start: Pair) -> Array:
    """The 6 x 6 spans at distances of 4 in x [N, H, W, C]: [6, 6, N * rows * columns * C].

    Each of the 36 is one slice of x in blocks, which the gather copies in long pieces.
    """
    rows, columns = count
    x = blocks(fit(x, ((rows + 1) * TILE, (columns + 1) * TILE), start))
    _, _, n, _, _, c = x.shape
    i, j = np.meshgrid(np.arange(SPAN), np.arange(SPAN), indexing="ij")
    starts = np.stack([i % TILE, j % TILE, i // TILE, j // TILE], -1)  # [6, 6, 4]
    parts = lax.gather(x, jnp.asarray(starts, jnp.int32),
                       lax.GatherDimensionNumbers((2, 3, 4, 5), (0, 1), (0, 1, 3, 4)),
                       (1, 1, n, rows, columns, c), mode="promise_in_bounds")
    return parts.reshape(SPAN, SPAN, -1)


def blocks(x: Array) -> Array:
    """x [N, 4 h, 4 w, C] by the place in its block: [4, 4, N, h, w, C]."""
    n, height, width, c = x.shape
    x = x.reshape(n, height // TILE, TILE, width // TILE, TILE, c)
    return x.transpose(2, 4, 0, 1, 3, 5)


def fit(x: Array, size: Sequence[int], start: Pair) -> Array:
    """x [N, H, W, C] from `start` before its corner, zeros outside: [N, *size, C]."""
    sides = [(low, length - low - old, 0)
             for length, low, old in zip(size, start, x.shape[1:3], strict=True)]
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *sides, (0, 0, 0)))


Map = Callable[[Window, Array, Array], Array]

FORWARD: dict[Form, Map] = {
    "plain": plain_forward, "patches": patches_forward,
    "winograd": functools.partial(winograd_forward, sums),
    "winograd_dot": functools.partial(winograd_forward, product)}
INPUT: dict[Form, Map] = {
    "plain": plain_input, "patches": patches_input,
    "winograd": functools.partial(winograd_input, sums),
    "winograd_dot": functools.partial(winograd_input, product)}
WEIGHT: dict[Form, Map] = {
    "plain": plain_weight, "stored": stored_weight, "patches": patches_weight,
    "winograd": functools.partial(winograd_weight, sums),
    "winograd_dot": functools.partial(winograd_weight, product)}
