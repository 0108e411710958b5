"""Functions of evaluators that are compiled once."""

from collections.abc import Callable
from typing import Any

import jax

from jaxdl.evaluate import Context

Array = jax.Array


def compiled(context: Context, name: str, task: Any,
             call: Callable[[Any, Any, Array], Any]) -> Callable[[Any, Array], Any]:
    """call(task, state, key), compiled once for an evaluator, for each trial of a sweep too."""
    key = (context.name, name)
    if key not in context.compiled:
        def run(state: Any, knobs: Any, key: Array) -> Any:
            bound: Any = task if context.bound is None else context.bound(knobs)
            return call(bound, state, key)

        context.compiled[key] = jax.jit(run, out_shardings=context.devices.replicated)
    return lambda state, key: context.compiled[context.name, name](state, context.knobs, key)
