"""A function that is compiled once, and says so when it is traced once more than it should be."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from jaxdl.display import console
from jaxdl.errors import RunError
from jaxdl.task import named
from jaxdl.tracing import current


def once(function: Callable[..., Any], what: str, operands: tuple[str, ...],
         shapes: int = 1) -> Callable[..., Any]:
    """The same function, for `jax.jit`.

    JAX calls it when it traces, and never else, so that this costs nothing where it is compiled.
    A trace for operands of other shapes or types warns and names the first that differs; where
    `tracing(strict=True)` holds it raises a RunError.

    Args:
      function: to be compiled.
      what: its name in the warning.
      operands: names of its arguments.
      shapes: for how many different ones it may be traced.
    """
    seen: list[dict[str, str]] = []

    @functools.wraps(function)
    def traced(*arguments: Any) -> Any:
        kinds = {f"{name}/{path}".rstrip("/"): _kind(x) for name, argument in zip(
            operands, arguments, strict=False) for path, x in named(argument).items()}
        if len(seen) >= shapes and kinds not in seen:
            old = seen[-1]
            path = next(p for p in [*kinds, *old] if kinds.get(p) != old.get(p))
            more = sum(kinds.get(p) != old.get(p) for p in {**kinds, **old}) - 1
            line = (f"{what} is compiled again: {path} was {old.get(path, 'absent')}, and is "
                    f"{kinds.get(path, 'absent')}{f' ({more} more differ)' if more else ''}")
            if current().strict:
                raise RunError(f"--strict_compile: {line}. What is committed is intact.")
            console.print(f"warning: {line}.")
            seen.clear()
        if kinds not in seen:
            seen.append(kinds)
        return function(*arguments)

    return traced


def _kind(x: Any) -> str:
    aval = jax.typeof(x)
    weak = ", weakly typed" if getattr(aval, "weak_type", False) else ""
    return f"{aval.dtype}[{', '.join(map(str, aval.shape))}]{weak}"
