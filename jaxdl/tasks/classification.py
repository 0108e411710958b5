"""Classification: one of several classes for each image."""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl import metrics
from jaxdl.config import Fraction, Size
from jaxdl.data.source import Transform
from jaxdl.data.transforms import Flip
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
      model: Linen module called as model(image, train), which returns logits [B, classes]. A single
        one, z [B, 1], is the log-odds of class 1 of two: as logits (0, z), whose softmax is the
        sigmoid of z and whose cross-entropy is the binary one.
      label_smoothing: weight of the uniform distribution in the labels, in training; evaluation
        reports the plain cross-entropy. None does not smooth.
      top_k: further accuracies: the label is among the K highest logits.
    """

    model: nn.Module
    label_smoothing: Fraction | None = None
    top_k: tuple[Size, ...] = ()

    input: ClassVar[str] = "image"  # what of a batch the model is given

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        mask = batch["mask"]
        # What a masked example holds (NaN, say) must reach neither the sums nor the gradients.
        kept = mask > 0
        image = batch[self.input]
        image = jnp.where(kept.reshape(-1, *[1] * (image.ndim - 1)), image,
                          jnp.zeros((), image.dtype))
        logits, mutable = self.apply(self.model, variables, image, key=key, train=train)
        logits = at_least_two(logits)
        logits = jnp.where(kept[:, None], logits, 0)  # [B, classes]
        losses = self.cross_entropy(logits, batch, train)

        labels = batch["label"]
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            labels = labels.argmax(-1)
        found = {"accuracy": Mean.of(metrics.correct_at(logits, labels, 1), mask)}
        for k in self.top_k:
            found[f"top{k}_accuracy"] = Mean.of(metrics.correct_at(logits, labels, k), mask)
        return Mean.of(losses, mask), Aux(metrics=found, mutable=mutable)

    def cross_entropy(self, logits: Array, batch: Batch, train: bool) -> Array:
        """-sum of target * log softmax(logits [B, classes]) over the classes: [B]."""
        target = self.target(batch, logits.shape[-1], train)
        return -(target * jax.nn.log_softmax(logits)).sum(-1)

    def target(self, batch: Batch, classes: int, train: bool) -> Array:
        """What the labels say, as probabilities, smoothed in training: [B, classes]."""
        labels = batch["label"]
        if jnp.issubdtype(labels.dtype, jnp.integer):
            target = jax.nn.one_hot(labels, classes)
            # A class that the model does not have has no loss: NaN, which ends the run.
            none = (labels < 0) | (labels >= classes)
            target = jnp.where(((batch["mask"] > 0) & none)[:, None], jnp.nan, target)
        else:
            target = labels
        if self.label_smoothing is not None and train:
            target = (1 - self.label_smoothing) * target + self.label_smoothing / classes
        return target

    def logits(self, state: TrainState, batch: Batch) -> Array:
        """Logits [B, classes] of the evaluated parameters (the average where one is kept)."""
        return at_least_two(self.apply(self.model, self.variables(state), batch[self.input],
                                        key=state.key, train=False)[0])

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


def at_least_two(logits: Array) -> Array:
    """(0, z) of a single logit z [B, 1]."""
    return jnp.pad(logits, ((0, 0), (1, 0))) if logits.shape[-1] == 1 else logits


@dataclass(frozen=True, kw_only=True)
class TestTimeAugmentation(Evaluate):
    """Loss and accuracy of the mean of the probabilities over augmented copies of each image.

    As Krizhevsky et al. (2012), section 4.1, average over crops and mirrored images. The image as
    it is counts as one of the copies.

    Attributes:
      augment: transforms of the copies, which see images after all transforms of the split; what
        moves pixels is fine there (Flip, PadCrop, Affine), what expects [0, 1] is not.
      copies: how many there are, with the plain one.
    """

    __test__: ClassVar[bool] = False  # nothing for pytest

    augment: tuple[Transform, ...] = (Flip(),)
    copies: Size = 8

    def measure(self, task: Any, state: TrainState, batch: Batch) -> Any:
        probabilities = task.probabilities(state, batch)
        key = jax.random.key(0)
        for i in range(1, self.copies):
            copy: Any = batch
            for j, transform in enumerate(self.augment):
                folded = jax.random.fold_in(jax.random.fold_in(key, i), j)
                copy = transform(copy, jax.vmap(jax.random.fold_in, (None, 0))(folded,
                                                                               batch["index"]))
            probabilities += task.probabilities(state, copy)
        probabilities = probabilities / self.copies
        labels, mask = batch["label"], batch["mask"]
        if not jnp.issubdtype(labels.dtype, jnp.integer):
            labels = labels.argmax(-1)
        own = jnp.take_along_axis(probabilities, labels[:, None], 1)[:, 0]
        return {"loss": Mean.of(-jnp.log(jnp.maximum(own, 1e-30)), mask),
                "accuracy": Mean.of(metrics.correct_at(probabilities, labels, 1), mask)}


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
