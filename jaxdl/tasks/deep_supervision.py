"""Deep supervision of Lee et al. (2015), https://arxiv.org/abs/1409.5185."""

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import NonNegative, Size
from jaxdl.errors import UserError, nearest
from jaxdl.task import Aux, Batch, Mean
from jaxdl.tasks.wrapped import Wrapped

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

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        inner, outputs, known = self.inside(), {}, []
        fresh = not variables

        def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = call(*args, **kwargs)
            if context.method_name == "__call__" and hasattr(output, "shape"):
                known.append(path := "/".join(context.module.path))
                if path in self.layers:
                    outputs[path] = output
            return output

        params = variables.get("params", {})
        given = dict(variables) if fresh else {
            **variables, "params": {k: p for k, p in params.items() if k != COMPANIONS}}
        with nn.intercept_methods(watch):
            mean, aux = inner.loss(given, batch, key, train=train)
        for layer in self.layers:
            if layer not in outputs:
                raise UserError(f"DeepSupervision: layers: the model has no {layer!r}."
                                f"{nearest(layer, known)}")
        companion = nn.Dense(self.classes)
        features = {layer: x.mean((1, 2)) if x.ndim == 4 else x.reshape(len(x), -1)
                    for layer, x in outputs.items()}
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
            logits = companion.apply({"params": own}, x.astype(jnp.float32))
            losses = Mean.of(inner.cross_entropy(logits, batch, train), batch["mask"])
            total = total + self.weight * losses.total
            found[f"{layer}_loss"] = losses
        return Mean(total, mean.count), replace(aux, metrics=found)
