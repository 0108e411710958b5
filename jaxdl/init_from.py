"""Starting from another run's parameters: which are taken, under which names."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxdl import distributed
from jaxdl.checkpoint import arrays, select
from jaxdl.errors import UserError, nearest
from jaxdl.task import named

if TYPE_CHECKING:
    from jaxdl.experiment import InitFrom


def parameters(run: Path, step: str) -> tuple[int, dict[str, np.ndarray]]:
    """(step, arrays by path) of another run: "params/...", "mutable/...".

    Frozen parameters count as params, and an average, where one is kept, stands for them.

    Args:
      run: its directory.
      step: "best", "last" or a number.
    """
    number = distributed.by_leader(lambda: select(run, step))
    try:
        found = arrays(run / "checkpoints", number, r"state/(params|frozen|mutable|ema)/.*")
    except ValueError as error:
        raise UserError(f"{error}.") from error
    flat = {p.removeprefix("state/"): x for p, x in found.items()}
    for old in ("frozen/", "ema/"):
        flat = {**{p: x for p, x in flat.items() if not p.startswith(old)},
                **{"params/" + p[len(old):]: x for p, x in flat.items() if p.startswith(old)}}
    return number, flat


def overlay(state: Any, init: "InitFrom") -> tuple[Any, str]:
    """(the state with parameters from another run, a line that says what was taken)."""
    assert init.path is not None
    run = Path(init.path).expanduser()
    number, stored = parameters(run, init.step)
    for pattern, replacement in init.rename:
        stored = {re.sub(pattern, replacement, p): x for p, x in stored.items()}
    stored.pop("", None)
    target = named(state)
    places = {re.sub(r"^(frozen|ema)/", "params/", p): p for p in target
              if re.match(r"(params|frozen|mutable)/", p)}
    fresh = {p for p in places if any(re.fullmatch(f, p) for f in init.fresh)}
    missing = [p for p in places if p not in stored and p not in fresh]
    if missing:
        raise UserError(f"init_from: {missing[0]} is not in step {number} of {run}"
                        f"{nearest(missing[0], stored)} ({len(missing)} missing in all); rename "
                        "it with init_from.rename or leave it new with init_from.fresh.")
    taken = {}
    for path, place in places.items():
        if path in fresh:
            continue
        x, old = stored[path], target[place]
        if x.shape != old.shape:
            raise UserError(f"init_from: {path} is {list(x.shape)} in {run}, and "
                            f"{list(old.shape)} here; init_from.fresh can leave it new.")
        taken[place] = distributed.put(x.astype(old.dtype), old.sharding)
        average = "ema/" + place.removeprefix("params/")
        if average in target:
            taken[average] = jax.numpy.copy(taken[place])
    unused = len(set(stored) - (set(places) - fresh))
    leaves = [taken.get(p, x) for p, x in target.items()]
    return jax.tree.unflatten(jax.tree.structure(state), leaves), (
        f"started from step {number} of {run}: {len(places) - len(fresh)} arrays taken, "
        f"{len(fresh)} fresh, {unused} unused")
