"""Classification: one of several classes for each image."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl import metrics
from jaxdl.config import Fraction, Size
from jaxdl.evaluate import Context, Evaluate
from jaxdl.pictures import Material, Picture
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class Classification(LossTask):
    """Softmax cross-entropy of a model of images.

    A batch has "image" [B, H, W, C], "label" (int [B], or probabilities [B, classes], as mixup
    gives) and "mask" [B]. Metrics are the loss, the accuracy (against the likeliest class where the
    labels are probabilities), and "topK_accuracy" for each K of `top_k`.

    Attributes:
      model: Linen module called as model(image, train), which returns logits [B, classes].
      label_smoothing: weight of the uniform distribution in the labels, in training; evaluation
        reports the plain cross-entropy. None does not smooth.
      top_k: further accuracies: the label is among the K highest logits.
    """

    model: nn.Module
    label_smoothing: Fraction | None = None
    top_k: tuple[Size, ...] = ()

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        mask, labels = batch["mask"], batch["label"]
        # What a masked example holds (NaN, say) must reach neither the sums nor the gradients.
        kept = mask > 0
        image = batch["image"]
        image = jnp.where(kept.reshape(-1, *[1] * (image.ndim - 1)), image,
                          jnp.zeros((), image.dtype))
        logits, mutable = self.apply(self.model, variables, image, key=key, train=train)
        logits = jnp.where(kept[:, None], logits, 0)  # [B, classes]

        classes = logits.shape[-1]
        if jnp.issubdtype(labels.dtype, jnp.integer):
            target = jax.nn.one_hot(labels, classes)
            # A class that the model does not have has no loss: NaN, which ends the run.
            none = (labels < 0) | (labels >= classes)
            target = jnp.where((kept & none)[:, None], jnp.nan, target)
        else:
            target, labels = labels, labels.argmax(-1)
        if self.label_smoothing is not None and train:
            target = (1 - self.label_smoothing) * target + self.label_smoothing / classes
        losses = -(target * jax.nn.log_softmax(logits)).sum(-1)  # [B]

        found = {"accuracy": Mean.of(metrics.correct_at(logits, labels, 1), mask)}
        for k in self.top_k:
            found[f"top{k}_accuracy"] = Mean.of(metrics.correct_at(logits, labels, k), mask)
        return Mean.of(losses, mask), Aux(metrics=found, mutable=mutable)

    def logits(self, state: TrainState, batch: Batch) -> Array:
        """Logits [B, classes] of the evaluated parameters (the average where one is kept)."""
        return self.apply(self.model, self.variables(state), batch["image"], key=state.key,
                          train=False)[0]

    def probabilities(self, state: TrainState, batch: Batch) -> Array:
        """Softmax of the logits: [B, classes]."""
        return jax.nn.softmax(self.logits(state, batch))

    def predict(self, state: TrainState, batch: Batch) -> Array:
        """The likeliest class: int32 [B]."""
        return self.logits(state, batch).argmax(-1).astype(jnp.int32)

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """Inputs, confusion matrix, mistakes, and what the network looks at."""
        from jaxdl.tasks import classification_pictures

        return classification_pictures.show(self, state, material)


@dataclass(frozen=True, kw_only=True)
class ClassificationReport(Evaluate):
    """The task's metrics, and macro and micro precision, recall and F1, and the expected
    calibration error; writes the confusion matrix into the run as confusion_NAME.csv.

    Attributes:
      bins: of confidence, for the calibration error.
    """

    bins: Size = 15

    def measure(self, task: Any, state: TrainState, batch: Batch) -> Any:
        probabilities, labels = task.probabilities(state, batch), batch["label"]
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            labels = labels.argmax(-1)
        mask, classes = batch["mask"], probabilities.shape[-1]
        return {"task": task.evaluate(state, batch),
                "confusion": metrics.confusion(labels, probabilities.argmax(-1), mask, classes),
                "bins": metrics.calibration_bins(probabilities, labels, mask, self.bins)}

    def finish(self, sums: Any, context: Context) -> Mapping[str, float]:
        matrix = sums["confusion"]
        found = dict(super().finish(sums["task"], context))
        for average in ("macro", "micro"):
            numbers = metrics.precision_recall_f1(matrix, average)
            found |= {f"{average}_{name}": value for name, value in numbers.items()}
        found["calibration_error"] = metrics.expected_calibration_error(sums["bins"])
        if context.folder is not None:
            names = range(len(matrix))
            with (context.folder / f"confusion_{context.name}.csv").open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(["label \\ prediction", *names])
                writer.writerows([name, *map(int, row)] for name, row in
                                 zip(names, matrix, strict=True))
        return found
