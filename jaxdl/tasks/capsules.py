"""Classification by the lengths of capsules, with reconstruction (Sabour et al. 2017)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import metrics
from jaxdl.config import Fraction, NonNegative
from jaxdl.models.capsules import CapsNet, length
from jaxdl.pictures import Images, Material, Picture, read, some
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState

Array = jax.Array

SHOWN = 12  # inputs and their reconstructions, on the report


@dataclass(frozen=True, kw_only=True)
class CapsuleClassification(LossTask):
    """Margin loss of the capsules' lengths, and the squared error of the decoded image.

    sum_k T_k max(0, m+ - |v_k|)^2 + lambda (1 - T_k) max(0, |v_k| - m-)^2  (equation 4), plus
    `reconstruction` times the sum of squares over the pixels (section 4.1). The decoder draws the
    image as it lies in [0, 1]: the data must be "normalised" by mean 0 and std 1. Batches are those
    of `Classification`.

    Attributes:
      model: `CapsNet`, or a module that is called like it.
      reconstruction: weight of the squared error; None leaves it out.
      present: m+, the length that the capsule of the label should exceed.
      absent: m-, the length that the others should not.
      others: lambda, weight of the others.
    """

    model: CapsNet
    reconstruction: NonNegative | None = 5e-4
    present: Fraction = 0.9
    absent: Fraction = 0.1
    others: NonNegative = 0.5

    not_applicable: ClassVar[Mapping[str, str]] = {
        "shuffled_labels": "the loss also measures the decoded image, which needs no labels"}

    def initial_loss(self, batch: Batch) -> Array:
        """Of capsules as long as absent ones may be, and a decoder that draws grey."""
        margin = jnp.square(jnp.asarray(self.present - self.absent))
        if self.reconstruction is None or not self.model.decoder:
            return margin
        grey = ((0.5 - batch["image"]) ** 2).sum((1, 2, 3)).mean()
        return margin + self.reconstruction * grey

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        mask, labels = batch["mask"], batch["label"]
        kept = mask > 0  # What a masked example holds must not reach the gradients.
        image = jnp.where(kept[:, None, None, None], batch["image"], 0)
        (v, drawn), mutable = self.apply(self.model, variables, image, labels, key=key,
                                         train=train)
        lengths = length(v)  # [B, classes]
        target = jax.nn.one_hot(labels, lengths.shape[-1])
        none = (labels < 0) | (labels >= lengths.shape[-1])  # no such class: NaN ends the run
        target = jnp.where((kept & none)[:, None], jnp.nan, target)
        margin = (target * jnp.maximum(0, self.present - lengths) ** 2 + self.others
                  * (1 - target) * jnp.maximum(0, lengths - self.absent) ** 2).sum(-1)  # [B]
        found = {"accuracy": Mean.of(metrics.correct_at(lengths, labels, 1), mask),
                 "margin": Mean.of(margin, mask)}
        if self.reconstruction is None or not self.model.decoder:
            return Mean.of(margin, mask), Aux(metrics=found, mutable=mutable)
        error = ((drawn - image) ** 2).sum((1, 2, 3))
        found["squared_error"] = Mean.of(error, mask)
        return (Mean.of(margin + self.reconstruction * error, mask),
                Aux(metrics=found, mutable=mutable))

    def logits(self, state: TrainState, batch: Batch) -> Array:
        """log |v_k|, so that their softmax is the share of each class in the sum of lengths."""
        silent = self.model.clone(decoder=())
        (v, _), _ = self.apply(silent, self.variables(state), batch["image"], key=state.key,
                               train=False)
        return jnp.log(length(v))

    def probabilities(self, state: TrainState, batch: Batch) -> Array:
        """|v_k| / sum |v|: [B, classes]. (The lengths themselves do not sum to one.)"""
        return jax.nn.softmax(self.logits(state, batch))

    def predict(self, state: TrainState, batch: Batch) -> Array:
        """The class of the longest capsule: int32 [B]."""
        return self.logits(state, batch).argmax(-1).astype(jnp.int32)

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """Those of `Classification`, and what the decoder draws of some inputs."""
        from jaxdl.tasks import classification_pictures

        yield from classification_pictures.show(self, state, material)
        if self.reconstruction is None or not self.model.decoder:
            return
        source = material.source(material.split)
        batch = next(read(source, some(source, SHOWN), SHOWN))
        image = batch["image"]
        (_, drawn), _ = self.apply(self.model, self.variables(state), image, key=state.key,
                                   train=False)
        names = [material.name(int(x)) for x in batch["label"]]
        pairs = jnp.stack([image, drawn], 1).reshape(-1, *image.shape[1:])
        yield Images(title="Reconstructions", images=np.clip(np.asarray(pairs), 0, 1),
                     captions=[text for name in names for text in (name, "")],
                     note="Each input and, right of it, what the decoder draws from the longest "
                          "capsule alone.")
