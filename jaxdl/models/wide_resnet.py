"""Wide residual networks of Zagoruyko & Komodakis (2016), https://arxiv.org/abs/1605.07146."""

import flax.linen as nn
import jax

from jaxdl.config import Fraction, Size
from jaxdl.errors import UserError
from jaxdl.layers import Conv, Dropout, batch_norm, he_normal

Array = jax.Array


class WideResNet(nn.Module):
    """WRN-depth-width: three stages of (depth - 4) / 6 pre-activated blocks (table 1).

    With ten classes, WRN-28-10 has 36,479,194 parameters, WRN-16-4 2,748,890. Convolutions start
    He-normal.

    Attributes:
      depth: 6n + 4: 10, 16, 22, 28, 40, ...
      width: factor k of the 16, 32 and 64 channels of the stages.
      classes: number of logits.
      dropout: probability of zeroing a value between the convolutions of a block in training
        (section 2.4; 0.3 on CIFAR); None for none.
    """

    depth: int = 28
    width: Size = 10
    classes: Size = 10
    dropout: Fraction | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 10 or self.depth % 6 != 4:
            legal = range(10, max(self.depth, 10) + 7, 6)
            near = sorted(sorted(legal, key=lambda depth: abs(depth - self.depth))[:2])
            raise UserError(f"WideResNet: depth={self.depth} is not 6n + 4; nearest: "
                            f"{near[0]}, {near[1]}.")

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = Conv(16, (3, 3), padding=1, use_bias=False, kernel_init=he_normal,
                 name="stem_conv")(x)  # [B, H, W, 16]
        for i in range(3):
            for j in range((self.depth - 4) // 6):
                x = WideBlock(channels=16 * 2 ** i * self.width,
                              stride=2 if i > 0 and j == 0 else 1, dropout=self.dropout,
                              name=f"stage{i + 1}_block{j + 1}")(x, train)
        x = nn.relu(batch_norm(train, name="norm")(x))
        return nn.Dense(self.classes, name="head")(x.mean((1, 2)))  # [B, classes]


class WideBlock(nn.Module):
    """x + conv(relu(norm(dropout?(conv(relu(norm(x))))))); x is projected where the shape changes,
    after the first norm and relu, which both branches then share.

    Attributes:
      channels: output channels.
      stride: of the first convolution.
      dropout: probability of zeroing a value between the convolutions; None for none.
    """

    channels: int
    stride: int
    dropout: float | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def conv(y: Array, kernel: int, stride: int, name: str) -> Array:
            return Conv(self.channels, (kernel, kernel), stride, padding=kernel // 2,
                        use_bias=False, kernel_init=he_normal, name=name)(y)

        y = nn.relu(batch_norm(train, name="norm1")(x))  # [B, H, W, C]
        if x.shape[-1] != self.channels or self.stride > 1:
            x = conv(y, 1, self.stride, "shortcut_conv")
        y = conv(y, 3, self.stride, "conv1")
        y = Dropout(self.dropout)(y, train)
        y = nn.relu(batch_norm(train, name="norm2")(y))
        return x + conv(y, 3, 1, "conv2")
