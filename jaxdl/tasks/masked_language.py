"""Masked language models: what was a token that is hidden?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.config import Size
from jaxdl.data.tokenizers import OfPieces, Tokenizer, pieces
from jaxdl.decode import padded
from jaxdl.errors import UserError, shown
from jaxdl.pictures import Material, Picture, Texts, read, some
from jaxdl.prompt import Teller, Told, encoded, fitting
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState
from jaxdl.tasks.language import SURPRISE, counted

Array = jax.Array
TEXTS = 4  # of a report
MASK = "[MASK]"  # of a prompt


@dataclass(frozen=True, kw_only=True)
class MaskedLanguageModel(LossTask):
    """Cross-entropy of hidden tokens, given all others: Devlin et al. (2019), section 3.1, task 1.

    Some tokens of a row are chosen at random, one at least; of these 80 % become the mask,
    10 % some other token, and 10 % stay as they are. The mask is the model's last token, which no
    tokenizer may have. In evaluation the choice is always the same for an example, whatever batch
    it is in. A batch has "tokens" int32 [B, T], -1 for none, "index" and "mask" [B].

    Attributes:
      model: called as model(tokens, train, places=...), returns the logits of the tokens at places
        [B, K]: [B, K, vocabulary].
      hidden: how many of a row's tokens are chosen, in percent.
    """

    model: nn.Module
    hidden: Size = 15

    further_tokens: ClassVar[int] = 1  # that the model needs beside the tokenizer's
    target_fields: ClassVar[tuple[str, ...]] = ()
    not_applicable: ClassVar[dict[str, str]] = {
        "modes": "which tokens are hidden is drawn at random in training",
        "overfits": "which tokens are hidden is drawn at random in training"}

    def __post_init__(self) -> None:
        if self.hidden > 100:
            raise UserError(f"MaskedLanguageModel: hidden={self.hidden} percent of the tokens; "
                            "expected 1 to 100.")

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        given, places, target = self.hide(batch, key if train else jax.random.key(0))
        logits, mutable = self.apply(self.model, variables, given, key=key, train=train,
                                     places=places)
        return counted(logits, target, batch["mask"], mutable)

    def hide(self, batch: Batch, key: Array) -> tuple[Array, Array, Array]:
        """What the model is given, [B, T]; the places that it is asked of, [B, K], as many as in a
        full row; and what it shall say there: -1 where a shorter row is asked of fewer."""
        tokens = batch["tokens"]
        mask = self.model.vocabulary - 1  # type: ignore[attr-defined]
        most = max(1, round(self.hidden * tokens.shape[1] / 100))

        def of_row(row: Array, index: Array) -> tuple[Array, Array, Array]:
            order, kind, other = jax.random.split(jax.random.fold_in(key, index), 3)
            there = row >= 0
            places = jax.lax.top_k(
                jnp.where(there, jax.random.uniform(order, row.shape), -1.), most)[1]  # [K]
            count = jnp.clip(jnp.round(self.hidden * there.sum() / 100), 1, there.sum())
            own = row[places]
            kinds = jax.random.uniform(kind, (most,))
            put = jnp.where(kinds < 0.8, mask, jnp.where(
                kinds < 0.9, jax.random.randint(other, (most,), 0, mask), own))
            asked = jnp.arange(most) < count
            return (row.at[places].set(jnp.where(asked, put, own)), places,
                    jnp.where(asked, own, -1))

        return jax.vmap(of_row)(tokens, batch["index"])

    def logits(self, state: TrainState, batch: Batch) -> Array:
        """Of the evaluated parameters, for tokens as they are: [B, T, vocabulary]."""
        return self.apply(self.model, self.variables(state), batch["tokens"], key=state.key,
                          train=False)[0]

    def teller(self, variables: Any, tokenizer: Tokenizer, data: Any) -> Teller:
        """What tells the likeliest tokens for each [MASK] of a text."""
        mask = self.model.vocabulary - 1  # type: ignore[attr-defined]

        @jax.jit
        def probabilities(tokens: Array, places: Array) -> Array:
            logits: Any = self.model.apply(variables, tokens, False, places=places)
            return jax.nn.softmax(logits)[..., :tokenizer.size]

        def tell(texts: Sequence[str], top: int) -> list[list[Told]]:
            rows = []
            for text in texts:
                if MASK not in text:
                    raise UserError(f"--prompt={shown(repr(text))}: expected {MASK} where a word "
                                    "is to be filled in.")
                parts = text.split(MASK)
                if isinstance(tokenizer, OfPieces) and tokenizer.exact:
                    # A piece has the blank before it, so a hidden one does.
                    parts = [*(part.removesuffix(" ") for part in parts[:-1]), parts[-1]]
                parts = [encoded(tokenizer, part, least=0) for part in parts]
                row = np.concatenate([x for part in parts for x in (part, [mask])][:-1])
                rows.append(fitting(text, row, getattr(self.model, "block", None)))
            tokens = padded(rows)
            places = padded([np.flatnonzero(row == mask) for row in rows])
            found = np.asarray(probabilities(jnp.asarray(tokens),
                                             jnp.maximum(jnp.asarray(places), 0)))
            told = []
            for text, row, place in zip(texts, found, places, strict=True):
                told.append([])
                for number in range((place >= 0).sum()):
                    of = text if number == 0 else f"{MASK} {number + 1}"
                    told[-1].append(Told(of, [
                        (tokenizer.decode([i]).strip(), float(row[number, i]))
                        for i in np.argsort(-row[number], kind="stable")[:top]]))
            return told

        return tell

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """What it makes of the tokens that are hidden from it."""
        tokenizer = material.data.content.tokenizer
        source = material.source(material.split)
        ids = some(source, TEXTS)

        @jax.jit
        def guessed(batch: Batch) -> tuple[Array, Array, Array, Array]:
            given, places, target = self.hide(batch, jax.random.key(0))
            logits = jax.nn.log_softmax(self.apply(
                self.model, self.variables(state), given, key=state.key, train=False,
                places=places)[0])
            own = jnp.take_along_axis(logits, jnp.maximum(target, 0)[..., None], -1)[..., 0]
            return places, target, -own, logits.argmax(-1)

        texts = []
        for batch in read(source, ids, material.batch_size):
            for row, places, target, losses, guesses in zip(
                    np.asarray(batch["tokens"]), *map(np.asarray, guessed(batch)), strict=True):
                parts = [(text, 0.) for text in pieces(tokenizer, row[row >= 0])]
                for place, wanted, loss, guess in zip(places, target, losses, guesses, strict=True):
                    if wanted >= 0:
                        other = tokenizer.decode([guess]) if guess < tokenizer.size else "the mask"
                        said = "" if guess == wanted else f" [{other}]"
                        parts[place] = (parts[place][0] + said,
                                        min(max(float(loss) / SURPRISE, 0.1), 1.))
                texts.append(parts)
        yield Texts(title="What it fills in", texts=texts[:len(ids)], note="shaded: what is hidden "
                    "from it, darker where it is less likely to it, and in brackets what it takes "
                    "it for where that is something else")

    def initial_loss(self, batch: Batch) -> Array:
        """Of a model for which all tokens are equally likely."""
        return jnp.log(float(self.model.vocabulary))  # type: ignore[attr-defined]
