"""Classification of rows of a table, how differently it treats groups, and training that treats
them alike.

Groups differ in how often they are predicted to be of class 1 (Hardt et al. 2016, section 2):
demographic parity asks that P(prediction = 1 | group) be the same for all, equalised odds that
P(prediction = 1 | group, label) be, and equal opportunity the latter for label = 1 alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import metrics
from jaxdl.config import Fraction, NonNegative, Size
from jaxdl.errors import UserError
from jaxdl.evaluate import Context, Evaluate
from jaxdl.pictures import Material, Picture
from jaxdl.task import Aux, Batch, Mean, TrainState
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.wrapped import Wrapped, observed
from jaxdl.tracing import current

Array = jax.Array

STATE = "fairness"  # the collection of the multipliers
Criterion = Literal["demographic_parity", "equalised_odds"]


@dataclass(frozen=True, kw_only=True)
class TabularClassification(Classification):
    """`Classification` of "features" [B, F], such as those of `data.tabular.Table`."""

    input: ClassVar[str] = "features"

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """None: those of `Classification` show images."""
        yield from ()


@dataclass(frozen=True, kw_only=True)
class GroupFairness(Evaluate):
    """The task's metrics, and how they differ between groups; for two classes.

    "demographic_parity_difference", "equal_opportunity_difference" and
    "equalised_odds_difference" are the largest difference between two groups in the rate of
    predictions of class 1: of all, of those of class 1, and the larger one of those of class 0 and
    of class 1. "disparate_impact" is the least rate over the largest one. For each group:
    "accuracy_G", and "calibration_error_G", the expected calibration error. A group without
    examples of a kind is left out of a difference.

    Attributes:
      groups: how many there are.
      bins: of confidence, for the calibration error.
    """

    groups: Size = 2
    bins: Size = 15

    def measure(self, task: Any, state: TrainState, batch: Batch) -> Any:
        probabilities = task.probabilities(state, batch)
        if probabilities.shape[-1] != 2:
            raise UserError(f"GroupFairness: expected two classes, the model has "
                            f"{probabilities.shape[-1]}.")
        label, prediction = batch["label"], probabilities.argmax(-1)
        masks = [batch["mask"] * (batch["group"] == g) for g in range(self.groups)]
        known = (batch["group"] >= 0) & (batch["group"] < self.groups)
        return {"task": task.evaluate(state, batch), "others": (batch["mask"] * ~known).sum(),
                "confusion": [metrics.confusion(label, prediction, m, 2) for m in masks],
                "bins": [metrics.calibration_bins(probabilities, label, m, self.bins)
                         for m in masks]}

    def finish(self, sums: Any, context: Context) -> Mapping[str, float]:
        if sums["others"] > 0:
            raise UserError(f"evals.{context.name}.groups={self.groups}: the data has examples of "
                            "further groups.")
        found = dict(super().finish(sums["task"], context))
        counts = np.stack(sums["confusion"])  # [groups, label, prediction]
        positive, total = counts[:, :, 1], counts.sum(2)  # [groups, label]
        rates = [_rates(p, n) for p, n in ((positive.sum(1), total.sum(1)),
                                           (positive[:, 0], total[:, 0]),
                                           (positive[:, 1], total[:, 1]))]
        parity, odds, opportunity = (float(np.ptp(r)) if len(r) else np.nan for r in rates)
        found |= {"demographic_parity_difference": parity,
                  "equal_opportunity_difference": opportunity,
                  "equalised_odds_difference": max(odds, opportunity)}
        if len(rates[0]) and rates[0].max() > 0:
            found["disparate_impact"] = float(rates[0].min() / rates[0].max())
        for g, (matrix, bins) in enumerate(zip(counts, sums["bins"], strict=True)):
            if matrix.sum():
                found[f"accuracy_{g}"] = metrics.accuracy(matrix)
                found[f"calibration_error_{g}"] = metrics.expected_calibration_error(bins)
        return found


def _rates(hits: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """hits / counts where something was counted."""
    return hits[counts > 0] / counts[counts > 0]


@dataclass(frozen=True, kw_only=True)
class FairlyConstrained(Wrapped):
    """Minimises the loss of the task inside, such that groups are treated alike within `tolerance`.

    The constraint, for each group and each stratum (all examples for demographic parity, those of
    each label for equalised odds), and in both directions:

        |P(prediction = 1 | group, stratum) - P(prediction = 1 | stratum)| <= tolerance

    The game of Cotter et al. (2019), https://arxiv.org/abs/1809.04198, section 3: the parameters
    descend on loss + sum multiplier * gap, with the mean probability of class 1 in place of the
    rate of predictions, which has no gradient; the multipliers ascend on the rates themselves,

        multiplier <- max(0, multiplier + rate * (gap - tolerance))

    Both are estimated on the batch. Errors of one batch, of either sign, cancel in the multipliers,
    as they would not in a squared penalty. The task inside must have two classes; batches have
    "group". With parallel=pmap it would see a device's part of them, and is refused.

    Attributes:
      groups: how many there are.
      criterion: which rates are to be alike.
      tolerance: difference of a group's rate from that of all that is allowed.
      rate: how fast the multipliers grow.
    """

    groups: Size = 2
    criterion: Criterion = "demographic_parity"
    tolerance: Fraction = 0.01
    rate: NonNegative = 0.02

    not_applicable: ClassVar[Mapping[str, str]] = {
        "accumulation": "the gaps between groups are those of the micro-batch",
        "modes": "the penalty, and its multipliers, are in training alone"}

    def inward(self, variables: dict[str, Any]) -> dict[str, Any]:
        return {name: x for name, x in variables.items() if name != STATE}

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        inner, fresh = self.inside(), not variables
        given = self.inward(variables)
        mean, aux, outputs = observed(inner, given, batch, key, train=train)
        strata = 1 if self.criterion == "demographic_parity" else 2
        if fresh:
            variables.update(given)
            variables[STATE] = {"multipliers": jnp.zeros((2, self.groups, strata))}
        if fresh or not train:
            return mean, aux
        if current().device_axis is not None:
            raise UserError("parallel=pmap: FairlyConstrained compares groups over the whole "
                            "batch; parallel=jit does.")
        kept = batch["mask"] > 0
        unknown = kept & ((batch["group"] < 0) | (batch["group"] >= self.groups))
        mean = replace(mean, total=jnp.where(unknown.any(), jnp.nan, mean.total))  # ends the run
        z = jnp.where(kept[:, None], outputs[""], 0)  # [B, 2], or [B, 1]: the log-odds
        if z.shape[-1] > 2:
            raise UserError(f"FairlyConstrained: expected two classes, the model has "
                            f"{z.shape[-1]}.")
        margin = z[:, 1] - z[:, 0] if z.shape[-1] == 2 else z[:, 0]  # [B]
        stratum = jnp.zeros_like(batch["label"]) if strata == 1 else batch["label"]
        members = (jax.nn.one_hot(batch["group"], self.groups)[:, :, None]
                   * jax.nn.one_hot(stratum, strata)[:, None])  # [B, groups, strata]
        members = jnp.where(kept[:, None, None], members * batch["mask"][:, None, None], 0)
        signs = jnp.array([1., -1.])[:, None, None]
        soft = signs * gaps(jax.nn.sigmoid(margin), members)  # [2, groups, strata]
        hard = signs * gaps((margin > 0).astype(margin.dtype), members)
        old = variables[STATE]["multipliers"]
        rate = self.rate / self.accumulate  # of each micro-batch
        new = jnp.maximum(0, old + rate * (jax.lax.stop_gradient(hard) - self.tolerance))
        penalty = (old * soft).sum() + (0. if aux.penalty is None else aux.penalty)
        return mean, replace(aux, penalty=penalty, mutable={
            **aux.mutable, STATE: {"multipliers": new}}, metrics={
            **aux.metrics, "gap": Mean(jnp.abs(hard).max(), jnp.ones(()))})


def gaps(positive: Array, members: Array) -> Array:
    """How far the mean of positive [B] in each cell of members [B, groups, strata] lies above that
    of its stratum: [groups, strata]; zero for a cell without members."""
    count = members.sum(0)
    total = jnp.einsum("b,bgs->gs", positive, members)
    own = total / jnp.where(count > 0, count, 1)
    whole = total.sum(0) / jnp.maximum(count.sum(0), 1e-9)
    return jnp.where(count > 0, own - whole, 0)
