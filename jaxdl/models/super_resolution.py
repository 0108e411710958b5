"""Networks that enlarge images: SRCNN and ESPCN."""

import flax.linen as nn
import jax

from jaxdl.config import Size
from jaxdl.layers import Activation, Conv, activate
from jaxdl.models.unet import to_pixels

Array = jax.Array

small = nn.initializers.normal(1e-3)  # of the last kernel: a fresh network is near its skip


def enlarged(x: Array, scale: int) -> Array:
    """Images [B, h, w, C] by bicubic interpolation (Keys 1981, a = -1/2): [B, scale * h, ...]."""
    batch, height, width, channels = x.shape
    return jax.image.resize(x, (batch, scale * height, scale * width, channels), "bicubic")


class SRCNN(nn.Module):
    """Bicubic interpolation, then convolutions in full size: Dong et al. (2014),
    https://arxiv.org/abs/1501.00092, section 3.1; "9-5-5" of section 4.3 is the default.

    Attributes:
      scale: by which height and width grow.
      kernels: sides of the kernels.
      channels: of the outputs of all convolutions but the last.
      residual: whether what the convolutions make is added to the interpolation (Kim et al. 2016,
        https://arxiv.org/abs/1511.04587, section 3.1), which learns many times as fast.
    """

    scale: Size = 3
    kernels: tuple[Size, ...] = (9, 5, 5)
    channels: tuple[Size, ...] = (64, 32)
    residual: bool = True

    @nn.compact
    def __call__(self, low: Array, train: bool) -> Array:
        """Images [B, h, w, C] to [B, scale * h, scale * w, C]."""
        x = y = enlarged(low, self.scale)
        for i, (side, channels) in enumerate(zip(self.kernels[:-1], self.channels, strict=True)):
            x = nn.relu(Conv(channels, (side, side), name=f"conv{i + 1}")(x))
        side = self.kernels[-1]
        x = Conv(low.shape[-1], (side, side), kernel_init=small,
                 name=f"conv{len(self.kernels)}")(x)
        return y + x if self.residual else x


class ESPCN(nn.Module):
    """Convolutions in the size of the small image, the last of which makes the pixels of each
    square as channels: Shi et al. (2016), https://arxiv.org/abs/1609.05158, equations 3 and 4. It
    takes scale^2 times less than SRCNN.

    Attributes:
      scale: by which height and width grow.
      kernels: sides of the kernels; theirs are 5-3-3.
      channels: of the outputs of all convolutions but the last.
      activation: theirs is tanh.
      residual: whether the interpolation is added.
    """

    scale: Size = 3
    kernels: tuple[Size, ...] = (5, 3, 3)
    channels: tuple[Size, ...] = (64, 32)
    activation: Activation = "tanh"
    residual: bool = True

    @nn.compact
    def __call__(self, low: Array, train: bool) -> Array:
        """Images [B, h, w, C] to [B, scale * h, scale * w, C]."""
        x = low
        for i, (side, channels) in enumerate(zip(self.kernels[:-1], self.channels, strict=True)):
            x = activate(Conv(channels, (side, side), name=f"conv{i + 1}")(x), self.activation)
        side = self.kernels[-1]
        x = Conv(self.scale ** 2 * low.shape[-1], (side, side), kernel_init=small,
                 name=f"conv{len(self.kernels)}")(x)
        x = to_pixels(x, self.scale)
        return enlarged(low, self.scale) + x if self.residual else x
