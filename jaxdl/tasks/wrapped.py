"""A task made from another task: methods of training compose as functions do."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from jaxdl.errors import UserError
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState

Array = jax.Array

OPTIONS = [f.name for f in dataclasses.fields(LossTask)]


@dataclass(frozen=True, kw_only=True)
class Wrapped(LossTask):
    """What it does not define is that of the task inside, so several can be put around each other.

    The options of `LossTask` (freeze, ema, accumulate, compute_dtype, remat) are those of the
    outermost task; set inside, they would be ignored, and are refused.

    Attributes:
      task: the task inside.
    """

    task: LossTask

    def __post_init__(self) -> None:
        for option in OPTIONS:
            default = LossTask.__dataclass_fields__[option].default
            if getattr(self.task, option) != default:
                raise UserError(f"{type(self).__name__}: set {option} in it, not in the "
                                f"{type(self.task).__name__} inside.")

    def inside(self) -> Any:
        """The task inside, with the type that this one computes in."""
        inner = object.__new__(type(self.task))  # Its own checks have passed, and would refuse it.
        inner.__dict__.update(self.task.__dict__)
        for option in OPTIONS:
            inner.__dict__[option] = getattr(self, option)
        return inner

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        return self.inside().loss(variables, batch, key, train=train)

    def evaluate(self, state: TrainState, batch: Batch) -> Mapping[str, Mean]:
        return self.inside().evaluate(state, batch)

    def __getattr__(self, name: str) -> Any:
        """What else the task inside has: logits, probabilities, pictures, model, ..."""
        if name.startswith("_") or "task" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no {name!r}.")
        return getattr(self.inside(), name)
