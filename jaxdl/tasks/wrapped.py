"""A task made from another task: methods of training compose as functions do."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.errors import UserError, nearest
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
        without_options(self.task, self, f"the {type(self.task).__name__} inside")

    def inside(self) -> Any:
        """The task inside, with the type that this one computes in, and with `inward` of this one's
        variables for its own."""
        return with_options(self.task, self, variables=lambda state: self.inward(
            self.variables(state)))

    def inward(self, variables: dict[str, Any]) -> dict[str, Any]:
        """The variables of the task inside, made from those of this one."""
        return variables

    def innermost(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Those of the task that is made from no other: of the network itself."""
        found = self.inward(variables)
        return self.task.innermost(found) if isinstance(self.task, Wrapped) else found

    def freezes(self) -> tuple[str, ...]:
        return (*self.freeze, *self.task.freezes())

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        given = self.inward(variables) if variables else variables
        return self.inside().loss(given, batch, key, train=train)

    def evaluate(self, state: TrainState, batch: Batch) -> Mapping[str, Mean]:
        return self.inside().evaluate(state, batch)

    def __getattr__(self, name: str) -> Any:
        """What else the task inside has: logits, probabilities, pictures, model, ..."""
        if name.startswith("_") or "task" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no {name!r}.")
        return getattr(self.inside(), name)


def without_options(task: LossTask, outer: LossTask, called: str) -> None:
    """Refuses a task inside another one that sets, or does, what it would not be asked for."""
    for option in OPTIONS:
        if getattr(task, option) != LossTask.__dataclass_fields__[option].default:
            raise UserError(f"{type(outer).__name__}: set {option} in it, not in {called}.")
    for method in ("init", "step"):
        if getattr(type(task), method) is not getattr(LossTask, method):
            raise UserError(f"{type(outer).__name__}: {called} defines {method}, which only the "
                            f"outermost task is asked for; put {type(task).__name__} around.")


def with_options(task: LossTask, outer: LossTask, **more: Any) -> Any:
    """The task with the options of the one around it, and further attributes."""
    inner = object.__new__(type(task))  # Its own checks have passed, and would refuse it.
    inner.__dict__.update(task.__dict__)
    inner.__dict__.update({option: getattr(outer, option) for option in OPTIONS})
    inner.__dict__.update(more)
    return inner


# What a method needs beside the loss of the task inside.

_aside: contextvars.ContextVar[bool] = contextvars.ContextVar("aside", default=False)


@contextlib.contextmanager
def aside() -> Iterator[None]:
    """In it, models run unseen by `observed`: those of a teacher."""
    token = _aside.set(True)
    try:
        yield
    finally:
        _aside.reset(token)


def observed(task: LossTask, variables: dict[str, Any], batch: Batch, key: Array, *, train: bool,
             layers: Sequence[str] = ()) -> tuple[Mean, Aux, dict[str, Array]]:
    """(mean, aux, outputs) of a task's loss: outputs[""] is what its model returned, in float32,
    and outputs[path] what the module at each path of `layers` did.

    The model runs once for both. (Should the task run it several times, as SAM does, the last one
    counts.)
    """
    outputs: dict[str, Array] = {}
    known: list[str] = []

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        output = call(*args, **kwargs)
        if context.method_name == "__call__" and not _aside.get() and hasattr(output, "shape"):
            known.append(path := "/".join(context.module.path))
            if path in ("", *layers):
                outputs[path] = output.astype(jnp.promote_types(output.dtype, jnp.float32))
        return output

    with nn.intercept_methods(watch):
        mean, aux = task.loss(variables, batch, key, train=train)
    for layer in layers:
        if layer not in outputs:
            raise UserError(f"layers: the model has no {layer!r}.{nearest(layer, known)}")
    return mean, aux, outputs


def beside(name: str, patterns: Sequence[str]) -> tuple[str, ...]:
    """The regexes of the task inside, but not of what a method keeps under this name."""
    return tuple(f"(?!{name}/)(?:{pattern})" for pattern in patterns)


def without(variables: dict[str, Any], name: str) -> dict[str, Any]:
    """The variables without what a method keeps under this name, in each collection."""
    return {collection: {k: x for k, x in tree.items() if k != name}
            for collection, tree in variables.items()}


def with_gradient(mean: Mean, params: Any, gradient: Any) -> Mean:
    """The same mean to the last bit, but total / count has this gradient with respect to params.

    For methods that say what the gradient is, and not of what: it is added as <gradient, params -
    params>, whose value is zero.
    """
    still = jax.lax.stop_gradient
    terms = jax.tree.map(lambda p, g: jnp.sum(still(g) * (p - still(p)).astype(g.dtype)), params,
                         gradient)
    return Mean(still(mean.total) + still(mean.count) * sum(jax.tree.leaves(terms)),
                still(mean.count))
