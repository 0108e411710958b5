"""Features of a network, which is what its last layer gets, and whether they are good for anything:
the nearest neighbours of an example, and a linear classifier of them.

Both evaluators go with every task that has a `model` whose last layer is called "head", as those of
`jaxdl.models` are: one that learned without labels, or a classifier to compare with.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

import flax.linen as nn
import jax
import numpy as np

from jaxdl.config import Between, Size
from jaxdl.data.few_labels import balanced
from jaxdl.errors import UserError
from jaxdl.evaluate import Context, each
from jaxdl.task import Batch, TrainState

Array = jax.Array

HEAD = "head"  # the last layer of all networks in jaxdl.models
CHUNK = 1_000  # examples that are compared with all training examples at once


@contextlib.contextmanager
def headless() -> Iterator[None]:
    """In it, a model returns what its last layer would get: [B, D]. Initialised in it, the model
    has no parameters of that layer."""
    met = []

    def skip(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.module.path == (HEAD,) and context.method_name == "__call__":
            met.append(context.module)
            return args[0]
        return call(*args, **kwargs)

    with nn.intercept_methods(skip):
        yield
    if not met:
        raise UserError(f"task.model: has no layer {HEAD!r}, whose input would be the features.")


def features(task: Any, state: TrainState, batch: Batch) -> Array:
    """What the last layer of the task's model gets, in evaluation: [B, D]."""
    with headless():
        found, _ = task.apply(task.model, task.variables(state), batch["image"], key=state.key,
                              train=False)
    return found.reshape(len(found), -1)


def collected(task: Any, state: TrainState, context: Context, split: str, like: str
              ) -> tuple[np.ndarray, np.ndarray]:
    """(features [N, D] as float32, labels [N]) of a split, transformed as the split `like` is."""
    source: Any = context.source(split)
    if split != like and hasattr(source, "transforms"):  # training data, but not augmented
        source = replace(source, transforms=getattr(context.source(like), "transforms", ()))

    def measure(task: Any, state: TrainState, batch: Batch) -> Any:
        return features(task, state, batch), batch["label"], batch["mask"]

    rows = each(measure, task, state, context, source, split, context.batch_size)
    found, label, mask = (np.concatenate(x) for x in zip(*rows, strict=True))
    kept = (mask > 0) & (label >= 0)  # -1: an example whose label is not known
    return found[kept].astype(np.float32), label[kept]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What evaluators of features share: they learn from a training split, as evaluation sees it,
    and are measured on another one. Labels are whole numbers.

    Attributes:
      split: measured on.
      train: learned from.
      labels: so many training examples are used, as many of each class, those that `FewLabels`
        would choose; None for all.
      draw: another number, other examples.
      every: steps between two evaluations; the last step is always evaluated.
    """

    split: str = "test"
    train: str = "train"
    labels: Size | None = None
    draw: int = 0
    every: Size = 1_000

    def __call__(self, task: Any, state: Any, context: Context) -> Mapping[str, float]:
        known, label = collected(task, state, context, self.train, self.split)
        if self.labels is not None and self.labels < len(label):
            chosen = balanced(label, self.labels, self.draw)
            known, label = known[chosen], label[chosen]
        asked, truth = collected(task, state, context, self.split, self.split)
        return {"accuracy": float((self.predict(known, label, asked) == truth).mean())}

    def predict(self, known: np.ndarray, label: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """The classes of features asked [M, D], from known ones [N, D] with labels [N]: [M]."""
        raise TypeError(f"{type(self).__name__} must define predict().")


@dataclass(frozen=True, kw_only=True)
class KNN(Probe):
    """Votes of the nearest neighbours by cosine, each with weight exp(cosine / temperature)
    (Wu et al. 2018, https://arxiv.org/abs/1805.01978, section 3.4).

    Attributes:
      neighbours: k; 200 in the paper, or all if there are fewer.
      temperature: tau; 0.07 in the paper.
    """

    neighbours: Size = 200
    temperature: Annotated[float, Between(1e-6)] = 0.07

    def predict(self, known: np.ndarray, label: np.ndarray, asked: np.ndarray) -> np.ndarray:
        known, asked = _unit(known), _unit(asked)
        classes, number = np.unique(label, return_inverse=True)
        k = min(self.neighbours, len(known))
        said = []
        for i in range(0, len(asked), CHUNK):
            cosine = asked[i:i + CHUNK] @ known.T  # [m, N]
            near = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
            weight = np.exp((np.take_along_axis(cosine, near, 1) - 1) / self.temperature)
            votes = np.zeros((len(near), len(classes)))
            np.add.at(votes, (np.arange(len(near))[:, None], number[near]), weight)
            said.append(classes[votes.argmax(1)])
        return np.concatenate(said)


@dataclass(frozen=True, kw_only=True)
class LinearProbe(Probe):
    """Multinomial logistic regression of scikit-learn on the features, each scaled to mean 0 and
    deviation 1 on the training examples.

    Attributes:
      l2: weight of half the sum of squared weights, against the sum of the losses.
    """

    l2: Annotated[float, Between(1e-9)] = 1.

    def predict(self, known: np.ndarray, label: np.ndarray, asked: np.ndarray) -> np.ndarray:
        from sklearn.linear_model import LogisticRegression  # takes seconds to import

        mean, deviation = known.mean(0), known.std(0)
        scale = np.where(deviation > 0, deviation, 1)
        model = LogisticRegression(C=1 / self.l2, max_iter=1_000)
        model.fit((known - mean) / scale, label)
        return np.asarray(model.predict((asked - mean) / scale))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
