"""MLP-Mixer of Tolstikhin et al. (2021), https://arxiv.org/abs/2105.01601."""

import re
from collections.abc import Callable
from typing import ClassVar

import flax.linen as nn
import jax

from jaxdl.config import Fraction, Size
from jaxdl.layers import StochasticDepth, rising
from jaxdl.models.vit import patches

Array = jax.Array


def timm(name: str) -> str:
    """The name of a variable in timm's state dicts."""
    name = re.sub(r"^block(\d+)\.", lambda m: f"blocks.{int(m[1]) - 1}.", name)
    for ours, theirs in (("patches.", "stem.proj."), (".tokens_dense", ".mlp_tokens.fc"),
                         (".channels_dense", ".mlp_channels.fc")):
        name = name.replace(ours, theirs)
    return name


class Mixer(nn.Module):
    """Blocks of two MLPs: over the patches, for each channel; over the channels, for each patch.

    The default is Mixer-B/16: on 224 x 224 images with 1000 classes 59,880,472 parameters. S/16 is
    width 512, layers 8, tokens 256: 18,528,264; L/16 is width 1024, layers 24, tokens 512:
    208,196,168.

    Attributes:
      patch: side of a patch, in pixels; it must divide the image's.
      width: channels C of each patch; the MLP over them has 4 C hidden units.
      tokens: hidden units of the MLP over patches.
      layers: number of blocks.
      classes: number of logits.
      stochastic_depth: probability that the last block's branches are skipped in training (Huang et
        al. 2016), which rises linearly from zero at the first; None for none.
    """

    patch: Size = 16
    width: Size = 768
    tokens: Size = 384
    layers: Size = 12
    classes: Size = 10
    stochastic_depth: Fraction | None = None

    published: ClassVar[dict[str, Callable[[str], str]]] = {"timm": timm}

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = patches(self, x, nn.initializers.lecun_normal())  # [B, T, C]
        for i in range(self.layers):
            skipped = rising(self.stochastic_depth, i, self.layers - 1)
            x = MixerBlock(self.tokens, skipped, name=f"block{i + 1}")(x, train)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)
        return nn.Dense(self.classes, kernel_init=nn.initializers.zeros, name="head")(x.mean(1))


class MixerBlock(nn.Module):
    """u = x + MLP(norm(x)^T)^T, then u + MLP(norm(u)), with exact GELU (equation 1); x [B, T, C].

    Attributes:
      tokens: hidden units of the MLP over patches.
      stochastic_depth: probability that a branch is left out in training; None for none.
    """

    tokens: int
    stochastic_depth: float | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        length, width = x.shape[1:]

        def mlp(y: Array, hidden: int, outputs: int, name: str) -> Array:
            y = nn.gelu(nn.Dense(hidden, name=f"{name}_dense1")(y), approximate=False)
            return nn.Dense(outputs, name=f"{name}_dense2")(y)

        y = nn.LayerNorm(epsilon=1e-6, name="norm1")(x).swapaxes(1, 2)  # [B, C, T]
        y = mlp(y, self.tokens, length, "tokens").swapaxes(1, 2)
        x = x + StochasticDepth(self.stochastic_depth)(y, train)
        y = nn.LayerNorm(epsilon=1e-6, name="norm2")(x)
        return x + StochasticDepth(self.stochastic_depth)(
            mlp(y, 4 * width, width, "channels"), train)
