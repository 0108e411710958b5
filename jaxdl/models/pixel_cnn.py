"""Gated PixelCNN of van den Oord et al. (2016), https://arxiv.org/abs/1606.05328."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Size
from jaxdl.layers import Conv

Array = jax.Array


class PixelCNN(nn.Module):
    """Logits of each pixel's level from the pixels above it and to its left: one stack of
    convolutions sees the rows above, another one the row itself and the first stack (section 2.2,
    figure 2).

    Attributes:
      levels: that a pixel may have, K.
      width: channels of each stack, p.
      layers: gated layers after the first one.
      kernel: side of the kernels, odd; the first layer has one of 7.
      classes: of a conditional network, which adds a vector for the label in each gate (section
        2.3); None for none.
      embedded: whether pixels are numbers of levels [B, H, W] that have a learned vector each, as
        the codes of a VQ-VAE, instead of images [B, H, W, 1].
    """

    levels: Size = 2
    width: Size = 32
    layers: Size = 6
    kernel: Size = 3
    classes: Size | None = None
    embedded: bool = False

    @nn.compact
    def __call__(self, x: Array, label: Array | None, train: bool) -> Array:
        """Logits [B, H, W, K] of images [B, H, W, 1], of which the network sees those before."""
        if self.embedded:
            x = nn.Embed(self.levels, self.width, name="embedding")(x)
        told = None
        if self.classes is not None:
            assert label is not None
            told = jax.nn.one_hot(label, self.classes, dtype=x.dtype)
        down = right = x
        out = jnp.zeros((), x.dtype)
        for i in range(self.layers + 1):
            down, right, out = self.layer(down, right, out, told, i)
        y = nn.relu(nn.Dense(self.width, name="hidden")(nn.relu(out)))
        return nn.Dense(self.levels, name="head")(y)

    def layer(self, down: Array, right: Array, out: Array, told: Array | None,
              i: int) -> tuple[Array, Array, Array]:
        """Both stacks and the sum of skips after a layer. The first layer sees neither the row nor
        the pixel itself, so the others may: their row is what the first one saw of those above."""
        side, name = 7 if i == 0 else self.kernel, f"{i + 1}"
        half, height, width = side // 2, *down.shape[1:3]
        seen = half + (i > 0)  # rows of the kernel down, and places of that to the right
        v = Conv(2 * self.width, (seen, side), padding=((half, 0), (half, half)),
                 name=f"down{name}")(down)[:, :height]
        h = Conv(2 * self.width, (1, seen), padding=((0, 0), (half, 0)),
                 name=f"right{name}")(right)[:, :, :width]
        h = h + nn.Dense(2 * self.width, name=f"link{name}")(v)
        down = self.gated(v, told, f"down_label{name}")
        h = self.gated(h, told, f"right_label{name}")
        skip = nn.Dense(self.width, name=f"skip{name}")(h)
        if i < self.layers:  # Nothing comes after the last one.
            h = nn.Dense(self.width, name=f"mix{name}")(h)
            right = h if i == 0 else right + h
        return down, right, out + skip

    def gated(self, x: Array, told: Array | None, name: str) -> Array:
        """tanh(a) * sigmoid(b) of the two halves of the channels."""
        if told is not None:
            x = x + nn.Dense(x.shape[-1], use_bias=False, name=name)(told)[:, None, None]
        a, b = jnp.split(x, 2, -1)
        return jnp.tanh(a) * nn.sigmoid(b)
