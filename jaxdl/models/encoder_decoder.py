"""The Transformer of Vaswani et al. (2017), https://arxiv.org/abs/1706.03762: encoder and decoder.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Fraction, Size
from jaxdl.errors import UserError
from jaxdl.layers import Dropout
from jaxdl.matmul import matmul
from jaxdl.models.transformer import (
    Norm,
    Positions,
    Unit,
    blocks,
    check_heads,
    empty,
    normalised,
    placed,
    tables,
)
from jaxdl.task import Remat

Array = jax.Array


class EncoderDecoder(nn.Module):
    """An encoder whose tokens see each other, and a decoder whose tokens see those before them and
    the encoder's last ones. One table of tokens serves both and the head (section 3.4).

    The blocks are those of `Transformer`, normalised before each part rather than after it, with
    which training needs no long warm-up (Xiong et al. 2020).

    Attributes:
      vocabulary: number of tokens, of both sides.
      layers: blocks of the encoder, and of the decoder.
      width: of the residual stream, D.
      heads: attention heads, each of width / heads.
      block: the most tokens of a source, and of a target.
      dropout: as in Transformer.
      bias: add biases to products and norms.
      kv_heads: as in Transformer; of attention to the encoder there are as many as heads.
      positions: as in Transformer.
      norm: as in Transformer.
      unit: of the MLP, as in Transformer.
      hidden: units of the MLP; None for 4 x width.
      scan: as in Transformer.
      remat: as in Transformer.
    """

    vocabulary: Size = 4_000
    layers: Size = 3
    width: Size = 256
    heads: Size = 4
    block: Size = 64
    dropout: Fraction | None = None
    bias: bool = True
    kv_heads: Size | None = None
    positions: Positions = "sinusoidal"
    norm: Norm = "layer"
    unit: Unit = "relu"
    hidden: Size | None = None
    scan: bool = False
    remat: Remat | None = None

    bfloat16_on_cpu: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self)

    def start(self, batch_size: int, length: int) -> Any:
        """The decoder's cache before the first token; the encoder's part comes with the source."""
        self._fits(length)
        shape = batch_size, self.kv_heads or self.heads, length, self.width // self.heads
        layers: Any = empty((self.layers, *shape)) if self.scan else tuple(
            empty(shape) for _ in range(self.layers))
        return {"layers": layers, "length": jnp.zeros(batch_size, jnp.int32)}

    def row_axes(self, cache: Any) -> Any:
        """Of each leaf of the cache the axis that counts rows."""
        return {**dict.fromkeys(cache, 0),
                "layers": jax.tree.map(lambda x: int(self.scan), cache["layers"])}

    @nn.compact
    def __call__(self, source: Array | None, tokens: Array, train: bool, cache: Any = None) -> Any:
        """Logits [B, T, V] of the tokens after each of tokens [B, T], given source [B, S]; -1 is
        none, after all others of a row.

        Args:
          source: None if the cache has it already.
          tokens: of the target.
          train: with dropout.
          cache: of `start` or of an earlier call; the result is then (logits, cache).
        """
        self._fits(tokens.shape[1])
        places = jnp.arange(tokens.shape[1])
        if cache is not None:
            places = cache["length"][:, None] + places
        known = tables(self)
        x = placed(self, known, tokens, places)
        if source is not None:
            self._fits(source.shape[1])
            mask = (source >= 0)[:, None]  # [B, 1, S]
            order = jnp.arange(source.shape[1])
            y = Dropout(self.dropout)(placed(self, known, source, order), train)
            y, _ = blocks(self, y, train, order, mask, causal=False, name="encoder")
            memory = normalised(self.norm, self.bias, "encoder_norm")(y)
        else:
            memory, mask = None, None if cache is None else cache["mask"]
        x, layers = blocks(self, Dropout(self.dropout)(x, train), train, places, None,
                           None if cache is None else cache["layers"], causal=True, crosses=True,
                           memory=memory, memory_mask=mask, name="decoder")
        x = normalised(self.norm, self.bias, "decoder_norm")(x)
        table = known[0]
        logits = matmul(x.astype(table.dtype), table, transposed=True)  # [B, T, V]
        if cache is None:
            return logits
        return logits, {"layers": layers, "mask": mask,
                        "length": cache["length"] + (tokens >= 0).sum(1)}

    def _fits(self, length: int) -> None:
        if length > self.block:
            raise UserError(f"EncoderDecoder: {length} tokens in a sequence, but block="
                            f"{self.block}.")

