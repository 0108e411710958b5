"""Numbers of classification that add up: sums over the examples where a mask is set.

Everything in jnp returns values for each example or sums over them, so batches, devices and padding
cannot change a result; the NumPy functions at the end turn sums into ratios, once.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def correct_at(logits: Array, labels: Array, k: int) -> Array:
    """Whether the label is among the k highest logits [..., classes]: [...], 0 or 1.

    Of equal logits the class of the lower number comes first, as in argmax: so k = 1 is the usual
    accuracy, and a predictor that scores all classes alike is right no more often than chance on
    balanced classes. Where the label's own logit is NaN it is wrong; other NaNs count as higher.
    """
    own = jnp.take_along_axis(logits, labels[..., None], -1)  # [..., 1]
    earlier = jnp.arange(logits.shape[-1]) < labels[..., None]
    other = jnp.arange(logits.shape[-1]) != labels[..., None]
    ahead = other & (~(logits <= own) | (earlier & (logits == own)))
    return ((ahead.sum(-1) < k) & ~jnp.isnan(own[..., 0])).astype(jnp.float32)


def confusion(labels: Array, predictions: Array, mask: Array, classes: int) -> Array:
    """How often each label [...] met each prediction [...]: float32 [classes, classes].

    Rows are true classes, columns predicted ones. Labels and predictions outside 0 ... classes - 1
    are not counted. Exact up to 2^24 (16.7 million) in a cell: sum more than that on the host.
    """
    rows = jax.nn.one_hot(labels.reshape(-1), classes)
    rows = jnp.where(mask.reshape(-1, 1) > 0, rows * mask.reshape(-1, 1), 0)
    return jnp.dot(rows.T, jax.nn.one_hot(predictions.reshape(-1), classes), precision="highest")


def calibration_bins(probabilities: Array, labels: Array, mask: Array, bins: int = 15) -> Array:
    """Sums over the examples in each of `bins` equal bins of confidence: float32 [bins, 3].

    The columns are their number, their total confidence (the highest of the probabilities
    [..., classes]) and how many are right. Bin m holds confidences in (m / bins, (m + 1) / bins]
    (Guo et al. 2017, section 2); zero falls into the first one.
    """
    weights = mask.reshape(-1).astype(jnp.float32)
    confidence = jnp.where(weights > 0, probabilities.max(-1).reshape(-1), 0)
    right = (probabilities.argmax(-1) == labels).reshape(-1)
    place = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
    columns = jnp.stack([jnp.ones_like(confidence), confidence, right], 1) * weights[:, None]
    return jnp.zeros((bins, 3)).at[place].add(columns)


# On the host, from the sums.


def expected_calibration_error(bins: Any) -> float:
    """The mean of |accuracy - confidence| of the bins [bins, 3], weighted by their counts.

    Guo et al. (2017), https://arxiv.org/abs/1706.04599, equation 3. NaN where nothing was counted.
    """
    count, confidence, right = np.asarray(bins, np.float64).T
    return _ratio(np.abs(right - confidence).sum(), count.sum(), np.nan)


def accuracy(matrix: Any) -> float:
    """The part of the examples on the diagonal; NaN where nothing was counted."""
    matrix = np.asarray(matrix, np.float64)
    return _ratio(matrix.trace(), matrix.sum(), np.nan)


def per_class(matrix: Any) -> dict[str, np.ndarray]:
    """Precision, recall, F1 and support of each class, from a confusion matrix: [classes] each.

    Precision is TP / (TP + FP), recall TP / (TP + FN), F1 is 2 TP / (2 TP + FP + FN), and each is 0
    where that divides by zero. The support is the number of examples of the class.
    """
    matrix = np.asarray(matrix, np.float64)
    hits, predicted, support = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
    return {"precision": _ratios(hits, predicted), "recall": _ratios(hits, support),
            "f1": _ratios(2 * hits, predicted + support), "support": support}


def precision_recall_f1(matrix: Any, average: Literal["macro", "micro", "weighted"] = "macro",
                        ) -> dict[str, float]:
    """Averages over classes of precision, recall and F1, from a confusion matrix.

    As scikit-learn without `labels`, "macro" leaves out the classes that occur neither as a label
    nor as a prediction; a class with one of the two counts, with zeros where `per_class` has them.
    "weighted" weights by support; "micro" pools the counts, so all three are the accuracy.
    """
    matrix = np.asarray(matrix, np.float64)
    if average == "micro":
        value = _ratio(matrix.trace(), matrix.sum(), 0.)
        return {"precision": value, "recall": value, "f1": value}
    table = per_class(matrix)
    support = table.pop("support")
    weights = support if average == "weighted" else (matrix.sum(0) + matrix.sum(1) > 0) * 1.
    return {name: _ratio((values * weights).sum(), weights.sum(), 0.)
            for name, values in table.items()}


def class_table(matrix: Any, names: Sequence[str] | None = None) -> str:
    """The numbers of `per_class` as text, one line for each class, by name or by number."""
    table: Mapping[str, np.ndarray] = per_class(matrix)
    names = [str(i) for i in range(len(table["support"]))] if names is None else list(names)
    width = max(len("class"), *map(len, names))
    lines = [f"{'class':{width}}  precision  recall      f1   support"]
    for name, p, r, f, n in zip(names, table["precision"], table["recall"], table["f1"],
                                table["support"], strict=True):
        lines.append(f"{name:{width}}  {p:9.4f}  {r:6.4f}  {f:6.4f}  {n:8.0f}")
    return "\n".join(lines)


def _ratio(a: float, b: float, otherwise: float) -> float:
    return float(a / b) if b else otherwise


def _ratios(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)
