"""Batch norms that keep the statistics they were loaded with."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax

from jaxdl.config import Regex
from jaxdl.errors import UserError
from jaxdl.task import Aux, Batch, Mean
from jaxdl.tasks.wrapped import Wrapped

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class FixedNorms(Wrapped):
    """The loss inside, whose batch norms normalise by their running statistics in training too, and
    do not follow the batches.

    For a network that starts from another's parameters: `freeze` keeps parameters, but statistics
    are none, and those of a few small batches of other data would spoil what is frozen.

    Attributes:
      layers: regexes of the module paths of the norms.
    """

    not_applicable: ClassVar[Mapping[str, str]] = {
        "modes": "statistics of the norms stay, and training is as evaluation"}

    layers: tuple[Regex, ...] = (".*",)

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        found = []

        def still(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            norm, path = context.module, "/".join(context.module.path)
            if (not isinstance(norm, nn.BatchNorm) or context.method_name != "__call__"
                    or not any(re.fullmatch(pattern, path) for pattern in self.layers)):
                return call(*args, **kwargs)
            found.append(path)
            if norm.is_initializing():
                return call(*args, **kwargs)
            # In the type of the statistics, as Linen does in evaluation.
            mean, var = (norm.get_variable("batch_stats", name) for name in ("mean", "var"))
            y = (args[0] - mean) * jax.lax.rsqrt(var + norm.epsilon)
            if norm.use_scale:
                y *= norm.get_variable("params", "scale")
            if norm.use_bias:
                y += norm.get_variable("params", "bias")
            return y.astype(args[0].dtype)

        with nn.intercept_methods(still):
            result = super().loss(variables, batch, key, train=train)
        if not found:
            raise UserError("FixedNorms: layers: the model has no batch norm that "
                            f"{' or '.join(map(repr, self.layers))} matches.")
        return result
