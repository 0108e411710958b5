"""Networks from images to images of the same size: Johnson et al. (2016),
https://arxiv.org/abs/1603.08155, as Zhu et al. (2017), https://arxiv.org/abs/1703.10593, use it."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Size
from jaxdl.errors import UserError
from jaxdl.layers import Conv, ConvTranspose

Array = jax.Array


class Translator(nn.Module):
    """Convolutions that halve the size, residual blocks, and transposed convolutions that double it
    again, all with instance normalisation (Ulyanov et al. 2016, https://arxiv.org/abs/1607.08022);
    images [B, H, W, C] to images in (-1, 1).

    Attributes:
      image_channels: of the result.
      channels: of the first convolution, which keeps the size, and of each that halves it.
      blocks: residual blocks at the smallest size.
      skips: whether a map on the way up is given that of the same size on the way down: a U-Net
        (Isola et al. 2017, https://arxiv.org/abs/1611.07004, section 3.2.1).
    """

    image_channels: Size = 1
    channels: tuple[Size, ...] = (32, 64, 128)
    blocks: Size = 3
    skips: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        parts = 1 << len(self.channels) - 1
        if x.shape[1] % parts or x.shape[2] % parts:
            raise UserError(f"Translator: images of {x.shape[1]} x {x.shape[2]} cannot be halved "
                            f"{len(self.channels) - 1} times, once less than it has channels.")
        kept = []
        for i, channels in enumerate(self.channels):
            stride = 1 if i == 0 else 2
            x = Conv(channels, (3, 3), (stride, stride), name=f"down{i + 1}")(x)
            x = nn.relu(instance_norm(f"down_norm{i + 1}")(x))
            kept.append(x)
        for i in range(self.blocks):
            y = Conv(self.channels[-1], (3, 3), name=f"block{i + 1}_1")(x)
            y = nn.relu(instance_norm(f"block_norm{i + 1}_1")(y))
            y = Conv(self.channels[-1], (3, 3), name=f"block{i + 1}_2")(y)
            x = x + instance_norm(f"block_norm{i + 1}_2")(y)
        for i, channels in enumerate(reversed(self.channels[:-1])):
            x = ConvTranspose(channels, name=f"up{i + 1}")(x)
            x = nn.relu(instance_norm(f"up_norm{i + 1}")(x))
            if self.skips:
                x = jnp.concatenate([x, kept[-2 - i]], -1)
        return nn.tanh(Conv(self.image_channels, (3, 3), name="draw")(x))


def instance_norm(name: str) -> nn.GroupNorm:
    """Each channel of each image by its own mean and variance, with a scale and a bias."""
    return nn.GroupNorm(num_groups=None, group_size=1, name=name)
