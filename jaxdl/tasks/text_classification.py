"""Classification of texts: one of several classes for each sequence of tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.config import Fraction
from jaxdl.data.labelled_text import filled
from jaxdl.data.tokenizers import NONE, Tokenizer
from jaxdl.layers import uniform
from jaxdl.pictures import Material, Picture
from jaxdl.prompt import Teller, Told, encoded
from jaxdl.task import Aux, Batch, Mean, TrainState
from jaxdl.tasks.classification import Classification, at_least_two

Array = jax.Array

WORDS = 3  # folded into the key of the tokens that are dropped


@dataclass(frozen=True, kw_only=True)
class SequenceClassification(Classification):
    """`Classification` of "tokens" int32 [B, T], such as those of `data.labelled_text`.

    Attributes:
      word_dropout: probability that a token is taken for none, in training (Iyyer et al. 2015,
        section 3.1): no single word may decide. None for none.
    """

    word_dropout: Fraction | None = None

    input: ClassVar[str] = "tokens"

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        if self.word_dropout is not None and train:
            tokens = batch["tokens"]
            kept = uniform(jax.random.fold_in(key, WORDS), tokens.shape) >= self.word_dropout
            batch = {**batch, "tokens": jnp.where(kept, tokens, NONE)}
        return super().loss(variables, batch, key, train=train)

    def teller(self, variables: Any, tokenizer: Tokenizer, data: Any) -> Teller:
        """What tells the labels of texts, which are cut as those of the data are."""
        @jax.jit
        def probabilities(tokens: Array) -> Array:
            logits: Any = self.model.apply(variables, tokens, False)
            return jax.nn.softmax(at_least_two(logits))

        def tell(texts: Sequence[str], top: int) -> list[list[Told]]:
            rows = [encoded(tokenizer, text) for text in texts]
            names = getattr(data, "names", ())
            block = getattr(data, "block", max(map(len, rows)))
            tokens = filled(rows, block, getattr(data, "keep", "beginning"))
            found = np.asarray(probabilities(jnp.asarray(tokens)))
            return [[Told(text, [(str(names[i]) if i < len(names) else str(i), float(row[i]))
                                 for i in np.argsort(-row, kind="stable")[:top]])]
                    for text, row in zip(texts, found, strict=True)]

        return tell

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """None: those of `Classification` show images."""
        yield from ()
