"""Generator and discriminator of Radford et al. (2016), https://arxiv.org/abs/1511.06434."""

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Fraction, Size
from jaxdl.conv import convolve
from jaxdl.errors import UserError
from jaxdl.layers import Conv, ConvTranspose, Dropout, batch_norm

Array = jax.Array

start = nn.initializers.normal(0.02)  # of all kernels: section 4


class Generator(nn.Module):
    """Noise [B, N], and a label [B] for a conditional one, to images [B, H, W, C] in (-1, 1): a
    dense layer, then transposed convolutions (section 3).

    Attributes:
      size: height and width; they must be halved to whole numbers once for each of `channels`.
      image_channels: of the image.
      channels: of the first map, and of the output of each transposed convolution but the last.
      batch_norm: normalise the first map and each output but the last.
      classes: of a conditional generator, which gets the one-hot label beside the noise (Mirza &
        Osindero 2014); None for none.
    """

    size: Size = 28
    image_channels: Size = 1
    channels: tuple[Size, ...] = (128, 64)
    batch_norm: bool = True
    classes: Size | None = None

    @nn.compact
    def __call__(self, noise: Array, label: Array | None, train: bool) -> Array:
        first = self.size >> len(self.channels)
        if first << len(self.channels) != self.size:
            raise UserError(f"Generator: size={self.size} cannot be halved {len(self.channels)} "
                            "times, once for each of channels.")
        x = noise
        if self.classes is not None:
            x = jnp.concatenate([x, jax.nn.one_hot(label, self.classes, dtype=x.dtype)], -1)
        x = nn.Dense(first * first * self.channels[0], use_bias=not self.batch_norm,
                     kernel_init=start, name="start")(x)
        x = x.reshape(len(x), first, first, self.channels[0])
        for i, channels in enumerate((*self.channels[1:], self.image_channels)):
            if self.batch_norm:
                x = batch_norm(train, name=f"norm{i + 1}")(x)
            last = i == len(self.channels) - 1
            x = ConvTranspose(channels, use_bias=last or not self.batch_norm, kernel_init=start,
                              name=f"conv{i + 1}")(nn.relu(x))
        return nn.tanh(x)


class Discriminator(nn.Module):
    """Images [B, H, W, C], and a label [B] for a conditional one, to a score [B]: convolutions with
    kernel 4 and stride 2 and leaky rectifiers of slope 0.2, then a linear layer of all features, or
    of those of each place: then there is a map of scores [B, h, w].

    Attributes:
      channels: of each convolution, which halves height and width.
      norm: "batch" normalises each output but the first by the batch (section 3); "spectral"
        divides each kernel by its largest singular value, found by one power iteration for each
        update (Miyato et al. 2018, https://arxiv.org/abs/1802.05957, algorithm 1), and suits every
        loss, also a gradient penalty; "none".
      classes: of a conditional discriminator: the inner product of the last features with a vector
        for the label is added (Miyato & Koyama 2018, https://arxiv.org/abs/1802.05637, equation 3);
        None for none.
      dropout: probability of zeroing a feature in training; None for none.
      patches: give a score to each place of the last map, which sees a part of the image (Isola et
        al. 2017, https://arxiv.org/abs/1611.07004, section 3.2.2).
    """

    channels: tuple[Size, ...] = (64, 128)
    norm: Literal["batch", "spectral", "none"] = "spectral"
    classes: Size | None = None
    dropout: Fraction | None = None
    patches: bool = False

    @nn.compact
    def __call__(self, x: Array, label: Array | None, train: bool) -> Array:
        for i, channels in enumerate(self.channels):
            batch, name = self.norm == "batch" and i > 0, f"conv{i + 1}"
            bound = self.bound(name, channels, train)
            x = Conv(channels, (4, 4), (2, 2), use_bias=not batch, kernel_init=start, name=name,
                     conv_general_dilated=lambda x, w, *args, bound=bound, **options:
                     convolve(x, bound(w), *args, **options))(x)
            if batch:
                x = batch_norm(train, name=f"norm{i + 1}")(x)
            x = Dropout(self.dropout)(nn.leaky_relu(x, 0.2), train)
        if not self.patches:
            x = x.reshape(len(x), -1)

        def dense(x: Array, features: int, name: str, bias: bool) -> Array:
            bound = self.bound(name, features, train)
            return nn.Dense(features, use_bias=bias, kernel_init=start, name=name,
                            dot_general=lambda x, w, *args, **options:
                            jax.lax.dot_general(x, bound(w), *args, **options))(x)

        score = dense(x, 1, "head", True)[..., 0]
        if self.classes is not None:
            label = jax.nn.one_hot(label, self.classes, dtype=x.dtype)
            score = score + (x * dense(label, x.shape[-1], "classes", False)).sum(-1)
        return score

    def bound(self, name: str, features: int, train: bool) -> Callable[[Array], Array]:
        """What becomes of the kernel of a layer."""
        if self.norm != "spectral":
            return lambda w: w
        u = self.variable("batch_stats", f"{name}_u",
                          lambda: jax.random.normal(self.make_rng("params"), (features,)))

        def divided(w: Array) -> Array:
            w_bar, new = spectral(w, u.value)
            if train:
                u.value = new
            return w_bar

        return divided


def spectral(w: Array, u: Array) -> tuple[Array, Array]:
    """(w over its largest singular value, the next u): w [..., O] as a matrix [N, O], by one step
    of power iteration from u [O] (Miyato et al. 2018, algorithm 1). The gradient treats the
    singular vectors as constants."""
    matrix = w.reshape(-1, w.shape[-1])
    fixed = jax.lax.stop_gradient(matrix)
    v = fixed @ u.astype(w.dtype)
    v = v / jnp.maximum(jnp.linalg.norm(v), 1e-12)
    new = v @ fixed
    new = new / jnp.maximum(jnp.linalg.norm(new), 1e-12)
    return w / (v @ matrix @ new), new.astype(u.dtype)
