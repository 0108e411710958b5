"""U-Net of Ronneberger et al. (2015), https://arxiv.org/abs/1505.04597, for diffusion models and
denoising."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Fraction, Size
from jaxdl.errors import UserError
from jaxdl.layers import Conv, Dropout

Array = jax.Array


class UNet(nn.Module):
    """Images, the noise level and perhaps a label to images of the same shape: Ho et al. (2020),
    https://arxiv.org/abs/2006.11239, appendix B.

    Down and up again through levels of half the height and width each; what each block makes on the
    way down is given to one on the way up. A block is two convolutions after group normalisation,
    the second of which is scaled and shifted by what the noise level and the label say (Dhariwal &
    Nichol 2021, https://arxiv.org/abs/2105.05233, section 3.1). The lowest level has self-attention
    after each block.

    Attributes:
      channels: of each level, each a multiple of eight.
      blocks: on each level, down; one more going up.
      patch: side of the squares of pixels that are treated as one pixel of more channels: 2 takes a
        fourth of the time.
      attention: heads of the attention at the lowest level; None for none.
      classes: of a conditional network; None for none.
      dropout: probability of zeroing a value within a block in training; None for none.
    """

    channels: tuple[Size, ...] = (64, 128)
    blocks: Size = 2
    patch: Size = 1
    attention: Size | None = 4
    classes: Size | None = None
    dropout: Fraction | None = None

    @nn.compact
    def __call__(self, x: Array, level: Array | None = None, label: Array | None = None,
                 train: bool = False) -> Array:
        """Images of the shape of images [B, H, W, C] at levels [B], any monotone function of the
        deviation of the noise that is of the size of one, with labels [B], -1 for none. Where all
        images have noise of one level, it need not be told: None."""
        shape, parts = x.shape, self.patch << len(self.channels) - 1
        if shape[1] % parts or shape[2] % parts:
            raise UserError(
                f"UNet: images of {shape[1]} x {shape[2]} cannot be divided by {parts}: patch="
                f"{self.patch}, then halved {len(self.channels) - 1} times.")
        told = None if level is None else self.told(level, label)
        x = Conv(self.channels[0], (3, 3), name="start")(to_channels(x, self.patch))
        kept = [x]
        for i, channels in enumerate(self.channels):
            if i > 0:
                x = nn.avg_pool(x, (2, 2), (2, 2))
                kept.append(x)
            for j in range(self.blocks):
                x = self.block(x, told, channels, i, f"down{i + 1}_{j + 1}", train)
                kept.append(x)
        x = self.block(x, told, self.channels[-1], len(self.channels) - 1, "middle", train)
        for i, channels in reversed(list(enumerate(self.channels))):
            for j in range(self.blocks + 1):
                x = jnp.concatenate([x, kept.pop()], -1)
                x = self.block(x, told, channels, i, f"up{i + 1}_{j + 1}", train)
            if i > 0:
                x = x.repeat(2, 1).repeat(2, 2)
        x = nn.silu(nn.GroupNorm(8, name="norm")(x))
        x = Conv(shape[-1] * self.patch ** 2, (3, 3), kernel_init=nn.initializers.zeros,
                 name="draw")(x)
        return to_pixels(x, self.patch)

    def told(self, level: Array, label: Array | None) -> Array:
        """What the noise level and the label say, for all blocks: [B, 2 * first channels]."""
        width = 2 * self.channels[0]
        frequency = jnp.exp(jnp.linspace(0., jnp.log(100.), width // 4)).astype(level.dtype)
        angle = level[:, None] * frequency
        told = nn.Dense(width, name="level1")(jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], -1))
        told = nn.Dense(width, name="level2")(nn.silu(told))
        if self.classes is not None:
            assert label is not None
            place = jnp.where(label < 0, self.classes, label)
            told = told + nn.Embed(self.classes + 1, width, name="label")(place).astype(told.dtype)
        return nn.silu(told)

    def block(self, x: Array, told: Array | None, channels: int, level: int, name: str,
              train: bool) -> Array:
        x = ResidualBlock(channels, self.dropout, name=name)(x, told, train)
        if self.attention is None or level < len(self.channels) - 1:
            return x
        return Attention(self.attention, name=f"{name}_attention")(x)


class ResidualBlock(nn.Module):
    """x + conv(silu((1 + scale) norm(conv(silu(norm(x)))) + shift)); without the two where nothing
    is told."""

    channels: int
    dropout: Fraction | None

    @nn.compact
    def __call__(self, x: Array, told: Array | None, train: bool) -> Array:
        y = Conv(self.channels, (3, 3), name="conv1")(nn.silu(nn.GroupNorm(8, name="norm1")(x)))
        y = nn.GroupNorm(8, name="norm2")(y)
        if told is not None:
            scale, shift = jnp.split(nn.Dense(2 * self.channels, name="told")(told), 2, -1)
            y = (1 + scale[:, None, None]) * y + shift[:, None, None]
        y = nn.silu(y)
        y = Conv(self.channels, (3, 3), kernel_init=nn.initializers.zeros, name="conv2")(
            Dropout(self.dropout)(y, train))
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, name="skip")(x)
        return x + y


class Attention(nn.Module):
    """Self-attention of all places of a map [B, H, W, C], added to it."""

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, height, width, channels = x.shape
        y = nn.GroupNorm(8, name="norm")(x).reshape(batch, height * width, channels)
        y = nn.Dense(3 * channels, name="query_key_value")(y)
        q, k, v = jnp.split(y.reshape(batch, height * width, self.heads, -1), 3, -1)
        y = jax.nn.dot_product_attention(q, k, v).reshape(batch, height, width, channels)
        return x + nn.Dense(channels, kernel_init=nn.initializers.zeros, name="project")(y)


def to_channels(x: Array, size: int) -> Array:
    """Squares of pixels as one pixel of more channels: [B, H, W, C] to [B, H / size, W / size,
    size * size * C]."""
    batch, height, width, channels = x.shape
    if height % size or width % size:
        raise UserError(f"images of {height} x {width} cannot be cut into squares of patch={size} "
                        "pixels.")
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // size, width // size, -1)


def to_pixels(x: Array, size: int) -> Array:
    """The inverse of `to_channels`: [B, h, w, size * size * C] to [B, size * h, size * w, C], the
    sub-pixel shuffle of Shi et al. (2016), https://arxiv.org/abs/1609.05158, equation 4."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, size, size, channels // size ** 2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * size, width * size, -1)
