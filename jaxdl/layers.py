"""Layers, activations and initialisers that the models share."""

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl import conv
from jaxdl.config import Fraction
from jaxdl.errors import UserError, nearest
from jaxdl.tracing import current

Array = jax.Array

# Normal with variance 2 / fan_out: He et al. (2015), https://arxiv.org/abs/1502.01852, section 2.2.
he_normal = nn.initializers.variance_scaling(2., "fan_out", "normal")

Initial = Literal["lecun_normal", "he_normal", "glorot_uniform", "orthogonal", "small", "zeros"]
# Of a kernel: variance 1 / fan_in (LeCun et al. 1998, section 4.6), 2 / fan_in (He et al. 2015),
# 2 / (fan_in + fan_out) (Glorot & Bengio 2010, equation 16), orthogonal columns (Saxe et al. 2014),
# deviation 0.01 (Krizhevsky et al. 2012, section 5), and zeros, from which nothing is learned.
INITIALS: dict[str, nn.initializers.Initializer] = {
    "lecun_normal": nn.initializers.lecun_normal(), "he_normal": nn.initializers.he_normal(),
    "glorot_uniform": nn.initializers.glorot_uniform(),
    "orthogonal": nn.initializers.orthogonal(), "small": nn.initializers.normal(0.01),
    "zeros": nn.initializers.zeros}

Activation = Literal["relu", "gelu", "silu", "elu", "tanh", "sigmoid"]
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu, "gelu": nn.gelu, "silu": nn.silu, "elu": nn.elu, "tanh": jnp.tanh,
    "sigmoid": nn.sigmoid}


def initial(name: str) -> nn.initializers.Initializer:
    """The initial values of that name."""
    if name not in INITIALS:
        raise UserError(f"initial={name!r}: expected one of {', '.join(INITIALS)}."
                        f"{nearest(name, INITIALS)}")
    return INITIALS[name]


def activate(x: Array, name: str) -> Array:
    """The activation function of that name, applied to x [...]: [...]."""
    if name not in ACTIVATIONS:
        raise UserError(f"activation={name!r}: expected one of {', '.join(ACTIVATIONS)}."
                        f"{nearest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name](x)


class Dropout(nn.Module):
    """Sets each element to zero with probability `rate`, and divides the others by 1 - rate.

    Srivastava et al. (2014), section 4, scaled in training instead of testing. It asks the rate no
    Python question, unlike `nn.Dropout`, so that trials with different rates share one compiled
    step. Random numbers come from the collection "dropout".

    Attributes:
      rate: probability of zero, less than one; None leaves the layer out.
    """

    rate: Fraction | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if self.rate is None or not train:
            return x
        return _dropped(x, self.rate, self.make_rng("dropout"), x.shape)


class StochasticDepth(nn.Module):
    """Sets a whole example to zero with probability `rate`, and divides the others by 1 - rate.

    On the branch f of a residual x + f(x) it trains networks of random depth: Huang et al. (2016),
    https://arxiv.org/abs/1603.09382, section 3, scaled in training instead of testing. Like Dropout
    it asks the rate no Python question and draws from the collection "dropout".

    Attributes:
      rate: probability of zero, less than one; None leaves the layer out.
    """

    rate: Fraction | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        if self.rate is None or not train:
            return x
        shape = (len(x), *(1,) * (x.ndim - 1))  # x  # [B, ...]
        return _dropped(x, self.rate, self.make_rng("dropout"), shape)


def rising(rate: Any, place: int, last: int) -> Any:
    """The rate of the block at a place of 0 ... last: it rises in a line to `rate` at the last one
    (Huang et al. 2016, section 3, equation 4, counts places from 1). None stays None."""
    return None if rate is None else rate * place / max(last, 1)


def _dropped(x: Array, rate: Any, key: Array, shape: tuple[int, ...]) -> Array:
    """x, zero where a number drawn for each place of `shape` is below the rate."""
    factor = jnp.asarray(1 / (1 - rate), x.dtype)
    return jnp.where(uniform(key, shape) >= rate, x * factor, jnp.zeros((), x.dtype))


def uniform(key: Array, shape: tuple[int, ...]) -> Array:
    """Uniform numbers in [0, 1) for a batch [B, ...].

    Where each device runs a program of its own on its part of the batch, it gets the rows that it
    would have where one program runs on all.
    """
    axis = current().device_axis
    if axis is None:
        return jax.random.uniform(key, shape)
    rows = shape[0]
    whole = jax.random.uniform(key, (rows * jax.lax.axis_size(axis), *shape[1:]))
    return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(axis) * rows, rows)


class Conv(nn.Conv):
    """Convolution x * w + b: `nn.Conv` with its arguments, parameters and initial values.

    On CPU it is computed in the form that `jaxdl.conv` finds the fastest, within 1e-5 of the
    largest value of the exact result. x: [B, H, W, C]; kernel: [kh, kw, C, features].
    """

    conv_general_dilated: Any = conv.convolve


class ConvTranspose(nn.Module):
    """Transposed convolution with a kernel of 4 x 4 and stride 2, which doubles height and width:
    `nn.ConvTranspose(features, (4, 4), (2, 2))` with its parameters and initial values.

    Each of the four places of a 2 x 2 block of the output meets 2 x 2 of the 4 x 4 weights and of
    the input: all of it is one matrix product, of which each place takes its own columns. Its
    gradients are matrix products too: on CPU many times as fast as those of the convolution.
    x: [B, H, W, C]; result: [B, 2H, 2W, features]; kernel: [4, 4, C, features].

    Attributes:
      features: channels of the result.
      use_bias: whether to add a bias to each of them.
      kernel_init: initial values of the kernel.
    """

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = INITIALS["lecun_normal"]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        w = self.param("kernel", self.kernel_init, (4, 4, channels, self.features)).astype(x.dtype)
        # w[2t + a, 2u + b] meets x[i + t + a - 1, j + u + b - 1] at the place 2i + a, 2j + b.
        w = w.reshape(2, 2, 2, 2, channels, self.features).transpose(0, 2, 4, 1, 3, 5)
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        corners = [x[:, t:t + height + 1, u:u + width + 1] for t in (0, 1) for u in (0, 1)]
        y = jnp.concatenate(corners, -1) @ w.reshape(4 * channels, 4 * self.features)
        y = y.reshape(batch, height + 1, width + 1, 2, 2, self.features)
        rows = [jnp.stack([y[:, a:a + height, b:b + width, a, b] for b in (0, 1)], 3)
                for a in (0, 1)]  # [B, H, W, 2, features] each
        y = jnp.stack(rows, 2).reshape(batch, 2 * height, 2 * width, self.features)
        if self.use_bias:
            y = y + self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)
        return y


def batch_norm(train: bool, *, zero_scale: bool = False, name: str | None = None) -> nn.BatchNorm:
    """Batch normalisation over all axes but the last, momentum 0.9 and epsilon 1e-5.

    Ioffe & Szegedy (2015), https://arxiv.org/abs/1502.03167. The statistics are float32 whatever
    the type of the input.

    Args:
      train: normalise by the batch, and update the running statistics; else by the latter.
      zero_scale: start with a scale of zero instead of one.
      name: of the module.
    """
    start = nn.initializers.zeros if zero_scale else nn.initializers.ones
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5,
                        scale_init=start, name=name)
