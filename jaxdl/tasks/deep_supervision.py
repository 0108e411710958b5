"""Deep supervision of Lee et al. (2015), https://arxiv.org/abs/1409.5185."""

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax

from jaxdl.config import NonNegative, Size
from jaxdl.task import Aux, Batch, Mean
from jaxdl.tasks.wrapped import Wrapped, aside, beside, observed, without

Array = jax.Array

COMPANIONS = "companions"  # where their parameters lie


@dataclass(frozen=True, kw_only=True)
class DeepSupervision(Wrapped):
    """Adds `weight` times the loss of a linear classifier of each of some hidden layers
    (section 2, equation 3), in training only.

    The classifiers see the mean of a feature map over its places. The task inside must have
    `cross_entropy(logits, batch, train)`, as Classification has.

    Attributes:
      layers: module paths, such as "conv1" or "stage2_block3": those of the parameters.
      weight: of each companion's loss; 0.3 in GoogLeNet (Szegedy et al. 2015, section 5).
      classes: of the companions.
    """

    layers: tuple[str, ...]
    weight: NonNegative = 0.3
    classes: Size = 10

    def freezes(self) -> tuple[str, ...]:
        return (*self.freeze, *beside(COMPANIONS, self.task.freezes()))

    def inward(self, variables: dict[str, Any]) -> dict[str, Any]:
        return without(variables, COMPANIONS)

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        inner, fresh = self.inside(), not variables
        params = variables.get("params", {})
        given = {} if fresh else self.inward(variables)
        mean, aux, outputs = observed(inner, given, batch, key, train=train, layers=self.layers)
        companion = nn.Dense(self.classes)
        features = {layer: x.mean((1, 2)) if x.ndim == 4 else x.reshape(len(x), -1)
                    for layer, x in ((layer, outputs[layer]) for layer in self.layers)}
        if fresh:
            variables.update(given)
            variables["params"] = {**variables["params"], COMPANIONS: {
                layer.replace("/", "."): companion.init(jax.random.fold_in(key, i), x)["params"]
                for i, (layer, x) in enumerate(features.items())}}
            return mean, aux
        if not train:
            return mean, aux
        total, found = mean.total, dict(aux.metrics)
        for layer, x in features.items():
            own = params[COMPANIONS][layer.replace("/", ".")]
            with aside():
                logits = companion.apply({"params": own}, x)
            losses = Mean.of(inner.cross_entropy(logits, batch, train), batch["mask"])
            total = total + self.weight * losses.total
            found[f"{layer}_loss"] = losses
        return Mean(total, mean.count), replace(aux, metrics=found)
