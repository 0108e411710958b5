"""Classification of tokens: parts of speech, names."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import metrics
from jaxdl.data.tagged import firsts
from jaxdl.data.tokenizers import Tokenizer, pieces, places_all
from jaxdl.decode import padded
from jaxdl.evaluate import Context, Evaluate
from jaxdl.pictures import Material, Picture, Texts, read, some
from jaxdl.prompt import Teller, Told, encoded, fitting
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState
from jaxdl.tasks.language import counted

Array = jax.Array
SHOWN = 6  # sentences of a report


@dataclass(frozen=True, kw_only=True)
class TokenClassification(LossTask):
    """Cross-entropy of the label of each token (Devlin et al. 2019, section 5.3).

    A batch has "tokens" and "labels", int32 [B, T], and "mask" [B]. A label of -1 does not count;
    the means are over all labels that do, not over rows.

    Attributes:
      model: called as model(tokens, train), returns logits [B, T, classes].
    """

    model: nn.Module

    target_fields: ClassVar[tuple[str, ...]] = ("labels",)

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        logits, mutable = self.apply(self.model, variables, batch["tokens"], key=key, train=train)
        return counted(logits, batch["labels"], batch["mask"], mutable)

    def logits(self, state: TrainState, batch: Batch) -> Array:
        """Of the evaluated parameters: [B, T, classes]."""
        return self.apply(self.model, self.variables(state), batch["tokens"], key=state.key,
                          train=False)[0]

    def predict(self, state: TrainState, batch: Batch) -> Array:
        """The likeliest label of each token: int32 [B, T]."""
        return self.logits(state, batch).argmax(-1).astype(jnp.int32)

    def teller(self, variables: Any, tokenizer: Tokenizer, data: Any) -> Teller:
        """What tells the likeliest label of each word, where words are what blanks divide."""
        @jax.jit
        def probabilities(tokens: Array) -> Array:
            return jax.nn.softmax(self.model.apply(variables, tokens, False))  # type: ignore

        def tell(texts: Sequence[str], top: int) -> list[list[Told]]:
            texts = [" ".join(text.split()) for text in texts]
            most = getattr(data, "block", None)
            rows = [fitting(text, encoded(tokenizer, text), most) for text in texts]
            found = np.asarray(probabilities(jnp.asarray(padded(rows, most))))
            names, told = getattr(data, "names", ()), []
            for text, row, place in zip(texts, found, places_all(tokenizer, texts), strict=True):
                told.append([])
                for first, word in zip(firsts(text.split(), place), text.split(), strict=True):
                    if first is not None:
                        label = int(row[first].argmax())
                        name = str(names[label]) if label < len(names) else str(label)
                        told[-1].append(Told(word, [(name, float(row[first, label]))]))
            return told

        return tell

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """Sentences, with the labels that it has wrong."""
        tokenizer = material.data.content.tokenizer
        source = material.source(material.split)
        ids = some(source, SHOWN)
        guess, texts = jax.jit(lambda batch: self.predict(state, batch)), []
        for batch in read(source, ids, material.batch_size):
            for row, labels, found in zip(np.asarray(batch["tokens"]), np.asarray(batch["labels"]),
                                          np.asarray(guess(batch)), strict=True):
                parts = []
                for text, label, given in zip(pieces(tokenizer, row[row >= 0]), labels, found,
                                              strict=False):
                    wrong = label >= 0 and label != given
                    said = f" [{material.name(given)}, not {material.name(label)}]"
                    parts.append((text + said * bool(wrong), 0.4 * bool(wrong)))
                texts.append(parts)
        yield Texts(title="What it takes for what", texts=texts[:len(ids)],
                    note="shaded: words with another label than the one that is right")


@dataclass(frozen=True, kw_only=True)
class TokenReport(Evaluate):
    """The task's metrics, and macro precision, recall and F1 over the labels."""

    def measure(self, task: Any, state: TrainState, batch: Batch) -> Any:
        logits, labels = task.logits(state, batch), batch["labels"]
        weights = jnp.broadcast_to(batch["mask"][:, None], labels.shape)  # -1 is not counted
        return {"task": task.evaluate(state, batch), "confusion": metrics.confusion(
            labels, logits.argmax(-1), weights, logits.shape[-1])}

    def finish(self, sums: Any, context: Context) -> Mapping[str, float]:
        found = metrics.precision_recall_f1(sums["confusion"], "macro")
        return {**super().finish(sums["task"], context),
                **{f"macro_{name}": value for name, value in found.items()}}
