"""Vision Transformer of Dosovitskiy et al. (2021), https://arxiv.org/abs/2010.11929."""

import re
from collections.abc import Callable
from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Fraction, Size
from jaxdl.errors import UserError
from jaxdl.layers import Conv, Dropout, StochasticDepth, rising

Array = jax.Array

xavier = nn.initializers.xavier_uniform()


def torchvision(name: str) -> str:
    """The name of a variable in torchvision's state dicts."""
    name = re.sub(r"^block(\d+)\.",
                  lambda m: f"encoder.layers.encoder_layer_{int(m[1]) - 1}.", name)
    for ours, theirs in (("class_token", "class_token"), ("positions", "encoder.pos_embedding"),
                         ("patches.", "conv_proj."), (".norm1", ".ln_1"), (".norm2", ".ln_2"),
                         (".query_key_value.", ".self_attention.in_proj_"),
                         (".project.", ".self_attention.out_proj."), (".dense1.", ".mlp.0."),
                         (".dense2.", ".mlp.3."), ("head.", "heads.head.")):
        name = name.replace(ours, theirs)
    return re.sub(r"^norm\.", "encoder.ln.", name)


def timm(name: str) -> str:
    """The name of a variable in timm's state dicts."""
    name = re.sub(r"^block(\d+)\.", lambda m: f"blocks.{int(m[1]) - 1}.", name)
    for ours, theirs in (("class_token", "cls_token"), ("positions", "pos_embed"),
                         ("patches.", "patch_embed.proj."), (".query_key_value.", ".attn.qkv."),
                         (".project.", ".attn.proj."), (".dense1.", ".mlp.fc1."),
                         (".dense2.", ".mlp.fc2.")):
        name = name.replace(ours, theirs)
    return name


class VisionTransformer(nn.Module):
    """A Transformer encoder over the patches of an image (equations 1 to 4).

    The default is ViT-B/16: on 224 x 224 images with 1000 classes 86,567,656 parameters; patch 32
    has 88,224,232. S/16 is width 384, heads 6: 22,050,664; L/16 width 1024, layers 24, heads 16:
    304,326,632. Blocks are x + attention(norm(x)), then x + MLP(norm(x)), with exact GELU.

    Attributes:
      patch: side of a patch, in pixels; it must divide the image's.
      width: of the residual stream, D.
      layers: number of blocks.
      heads: attention heads, each of width / heads.
      classes: number of logits.
      pool: what the head sees: a learned token put before the patches, or their mean.
      dropout: probability of zeroing, in training, a value of the embeddings or within a branch.
      stochastic_depth: probability that the last block's branches are skipped in training (Huang et
        al. 2016), which rises linearly from zero at the first; None for none.
    """

    patch: Size = 16
    width: Size = 768
    layers: Size = 12
    heads: Size = 12
    classes: Size = 10
    pool: Literal["token", "mean"] = "token"
    dropout: Fraction | None = None
    stochastic_depth: Fraction | None = None

    bfloat16_on_cpu: ClassVar[bool] = True
    published: ClassVar[dict[str, Callable[[str], str]]] = {"torchvision": torchvision,
                                                            "timm": timm}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise UserError(f"VisionTransformer: width={self.width} is not a multiple of "
                            f"heads={self.heads}.")

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        x = patches(self, x, nn.initializers.truncated_normal(  # [B, T, D]
            (self.patch ** 2 * x.shape[-1]) ** -0.5))
        if self.pool == "token":
            token = self.param("class_token", nn.initializers.zeros, (1, 1, self.width))
            x = jnp.concatenate([jnp.broadcast_to(token.astype(x.dtype), (len(x), 1, self.width)),
                                 x], 1)
        positions = self.param("positions", nn.initializers.normal(0.02),
                               (1, x.shape[1], self.width))
        x = Dropout(self.dropout)(x + positions.astype(x.dtype), train)
        for i in range(self.layers):
            skipped = rising(self.stochastic_depth, i, self.layers - 1)
            x = EncoderBlock(self.heads, self.dropout, skipped, name=f"block{i + 1}")(x, train)
        x = nn.LayerNorm(epsilon=1e-6, name="norm")(x)
        x = x[:, 0] if self.pool == "token" else x.mean(1)  # [B, D]
        return nn.Dense(self.classes, kernel_init=nn.initializers.zeros, name="head")(x)


def patches(model: "VisionTransformer | nn.Module", x: Array,
            start: nn.initializers.Initializer) -> Array:
    """A linear map of each patch of images x [B, H, W, C], row by row: [B, T, D].

    `model` has the fields `patch` and `width`.
    """
    size, height, width = model.patch, *x.shape[1:3]  # type: ignore[attr-defined]
    if height % size or width % size:
        raise UserError(f"{type(model).__name__}: images of {height} x {width} are not made of "
                        f"whole patches of {size} x {size}; set patch to a divisor of both.")
    x = Conv(model.width, (size, size), size, padding="VALID",  # type: ignore[attr-defined]
             kernel_init=start, name="patches")(x)
    return x.reshape(len(x), -1, x.shape[-1])


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)); x [B, T, D].

    Attributes:
      heads: attention heads, each of D / heads.
      dropout: probability of zeroing a value of the MLP or of a branch; None for none.
      stochastic_depth: probability that a branch is left out in training; None for none.
    """

    heads: int
    dropout: float | None
    stochastic_depth: float | None

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        length, width = x.shape[1:]

        def branch(y: Array) -> Array:
            return StochasticDepth(self.stochastic_depth)(Dropout(self.dropout)(y, train), train)

        y = nn.LayerNorm(epsilon=1e-6, name="norm1")(x)
        y = nn.Dense(3 * width, kernel_init=xavier, name="query_key_value")(y)
        q, k, v = jnp.moveaxis(y.reshape(-1, length, 3, self.heads, width // self.heads), 2, 0)
        y = jax.nn.dot_product_attention(q, k, v)  # [B, T, heads, D / heads]
        x = x + branch(nn.Dense(width, kernel_init=xavier, name="project")(y.reshape(x.shape)))
        y = nn.LayerNorm(epsilon=1e-6, name="norm2")(x)
        y = nn.gelu(nn.Dense(4 * width, kernel_init=xavier, name="dense1")(y), approximate=False)
        y = Dropout(self.dropout)(y, train)
        return x + branch(nn.Dense(width, kernel_init=xavier, name="dense2")(y))
