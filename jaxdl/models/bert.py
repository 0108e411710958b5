"""BERT: Devlin et al. (2019), https://arxiv.org/abs/1810.04805."""

from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Count, Fraction, Size
from jaxdl.errors import UserError
from jaxdl.layers import Dropout
from jaxdl.matmul import matmul
from jaxdl.models.transformer import (
    Dense,
    Norm,
    Positions,
    Unit,
    activated,
    blocks,
    check_heads,
    normal,
    normalised,
    placed,
    tables,
)
from jaxdl.task import Remat

Array = jax.Array
EPSILON = 1e-12  # of its norms


class Bert(nn.Module):
    """A Transformer encoder whose tokens all see each other, and what it is asked for.

    The defaults are BERT-base: 109,482,240 parameters with the pooler, and without a head. GELU is
    the exact one.

    Attributes:
      vocabulary: number of tokens.
      layers: number of blocks.
      width: of the residual stream, D.
      heads: attention heads.
      block: the most tokens that it sees at once.
      types: kinds of segments, such as a question and its text; 0 for none.
      dropout: as in Transformer.
      hidden: units of the MLPs; None for 4 x width.
      output: "tokens": logits [B, T, vocabulary] of each token (section 3.1, task 1); "labels": of
        a label for each token, [B, T, classes]; "class": of one for the sequence, [B, classes].
      classes: how many labels there are.
      pool: what the class of a sequence is told by: its "first" token, through a dense layer with
        tanh, or the "mean" of all, likewise.
      positions: as in Transformer.
      norm_after: each part is norm(x + part(x)), as published; else x + part(norm(x)), with a last
        norm after all of them, which learns faster (Xiong et al. 2020, section 3.4).
      scan: as in Transformer.
      remat: as in Transformer.
    """

    vocabulary: Size = 30_522
    layers: Size = 12
    width: Size = 768
    heads: Size = 12
    block: Size = 512
    types: Count = 2
    dropout: Fraction | None = None
    hidden: Size | None = None
    output: Literal["tokens", "labels", "class"] = "tokens"
    classes: Size = 2
    pool: Literal["first", "mean"] = "first"
    positions: Positions = "learned"
    norm_after: bool = True
    scan: bool = False
    remat: Remat | None = None

    # What the blocks ask of a module.
    bias: ClassVar[bool] = True
    kv_heads: ClassVar[None] = None
    norm: ClassVar[Norm] = "layer"
    unit: ClassVar[Unit] = "gelu_exact"
    bfloat16_on_cpu: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self)

    @nn.compact
    def __call__(self, tokens: Array, train: bool, kind: Array | None = None,
                 places: Array | None = None) -> Array:
        """Logits, as `output` says, of tokens [B, T]; -1 is none, at the end of a row.

        Args:
          tokens: of the sequence.
          train: with dropout.
          kind: int [B, T], the segment that each token belongs to; None for all to the first.
          places: int [B, K], the places whose logits are asked for, [B, K, ...], where each token
            has some; None for all T.
        """
        if tokens.shape[1] > self.block:
            raise UserError(f"Bert: {tokens.shape[1]} tokens in a sequence, but block="
                            f"{self.block}.")
        if kind is not None and self.types < 2:
            raise UserError(f"Bert: types={self.types}, and the tokens are of two kinds of "
                            "segments; expected types=2 at least.")
        known, order = tables(self), jnp.arange(tokens.shape[1])
        x = placed(self, known, tokens, order)
        if self.types:
            kinds = self.param("types", normal(0.02), (self.types, self.width))
            x = x + kinds.astype(x.dtype)[jnp.zeros_like(tokens) if kind is None else kind]
        x = normalised(self.norm, True, "embedding_norm", EPSILON)(x)
        mask = (tokens >= 0)[:, None]  # [B, 1, T]
        x, _ = blocks(self, Dropout(self.dropout)(x, train), train, order, mask, causal=False,
                      norm_after=self.norm_after, epsilon=EPSILON)
        if not self.norm_after:
            x = normalised(self.norm, True, "norm", EPSILON)(x)
        if places is not None and self.output != "class":
            x = jnp.take_along_axis(x, places[..., None], 1)  # [B, K, D]
        if self.output == "tokens":
            x = activated(Dense(self.width, 0.02, True, name="transform")(x), self.unit)
            x = normalised(self.norm, True, "transform_norm", EPSILON)(x)
            bias = self.param("head_bias", nn.initializers.zeros, (self.vocabulary,))
            logits = matmul(x.astype(known[0].dtype), known[0], transposed=True)
            return logits + bias.astype(logits.dtype)
        if self.output == "class":
            if self.pool == "mean":
                kept = (tokens >= 0)[..., None].astype(x.dtype)
                x = (x * kept).sum(1, keepdims=True) / jnp.maximum(kept.sum(1, keepdims=True), 1)
            x = jnp.tanh(Dense(self.width, 0.02, True, name="pooler")(x[:, :1]))
        x = Dropout(self.dropout)(x, train)
        logits = Dense(self.classes, 0.02, True, name="head")(x)
        return logits[:, 0] if self.output == "class" else logits
