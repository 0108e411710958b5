"""Starting from another run's parameters, or from published weights: which are taken, under which
names; and adapters on top of them."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jaxdl import distributed, weights
from jaxdl.checkpoint import arrays, read_manifest, select
from jaxdl.errors import UserError, nearest
from jaxdl.task import named

if TYPE_CHECKING:
    from jaxdl.experiment import InitFrom


def parameters(run: Path, step: str) -> tuple[int, dict[str, Any]]:
    """(step, {path: (its path in the checkpoint, its shape)}) of another run: "params/...",
    "mutable/...".

    Frozen parameters count as params, and an average, where one is kept, stands for them.

    Args:
      run: its directory.
      step: "best", "last" or a number.
    """
    number = select(run, step)
    stored = read_manifest(run / "checkpoints", number)["arrays"]
    flat = {p.removeprefix("state/"): (p, shape) for p, (shape, _) in stored.items()
            if re.match(r"state/(params|frozen|mutable|ema)/", p)}
    for old in ("frozen/", "ema/"):
        flat = {**{p: x for p, x in flat.items() if not p.startswith(old)},
                **{"params/" + p[len(old):]: x for p, x in flat.items() if p.startswith(old)}}
    return number, flat


def overlay(state: Any, init: "InitFrom", task: Any) -> tuple[Any, str]:
    """(the state with parameters from elsewhere, a line that says what was taken).

    A file of published weights is of `task.model`; or of the second part of `task.pretrained`, a
    module whose parameters lie under the first, "NAME/": `init_from.rename` moves them there."""
    assert init.path is not None
    run = Path(os.path.expanduser(init.path))
    if not distributed.by_leader(run.exists):
        raise UserError(f"init_from.path={init.path}: there is no such run or file; the "
                        "experiment's docstring may say where it comes from.")
    target = named(state)
    places = {re.sub(r"^(frozen|ema)/", "params/", p): p for p in target
              if re.match(r"(params|frozen|mutable)/", p)}
    published = run.is_file()
    try:
        if published:
            shapes = {p: list(target[place].shape) for p, place in places.items()}
            inside, model = getattr(task, "pretrained", ("", getattr(task, "model", None)))
            own = {re.sub(rf"^(params|mutable/[^/]+)/{inside}", r"\1/", p): shape
                   for p, shape in shapes.items() if f"/{inside}" in p}
            origin, stored, library = distributed.by_leader(
                lambda: weights.stored(run, model, own))
            layout = weights.of_model(model)[library]
        else:
            number, stored = distributed.by_leader(lambda: parameters(run, init.step))
            origin = f"step {number} of {run}"
    except ValueError as error:
        raise UserError(f"init_from: {error}.") from error
    for pattern, replacement in init.rename:
        try:
            stored = {re.sub(pattern, replacement, p): x for p, x in stored.items()}
        except re.error as error:
            raise UserError(f"init_from.rename: {replacement!r} cannot replace {pattern!r} "
                            f"({error}).") from error
    stored.pop("", None)
    more = None if init.more is None else Path(os.path.expanduser(init.more))
    added = {} if more is None else distributed.by_leader(lambda: weights.shapes(more))
    for p, shape in added.items():
        if p not in places:
            raise UserError(f"init_from.more: {p} of {more} is no parameter here."
                            f"{nearest(p, places)}")
        if shape != (here := list(target[places[p]].shape)):
            raise UserError(f"init_from.more: {p} is {shape} in {more}, and {here} here.")
    fresh = {p for p in places if any(re.fullmatch(f, p) for f in init.fresh)} - added.keys()
    missing = [p for p in places if p not in stored and p not in fresh and p not in added]
    if published:
        weights.explain(run, stored, places, fresh, shapes)
    if missing:
        raise UserError(f"init_from: {missing[0]} is not in {origin}"
                        f"{nearest(missing[0], stored)} ({len(missing)} missing in all); rename "
                        "it with init_from.rename or leave it new with init_from.fresh.")
    wanted = {path: place for path, place in places.items()
              if path not in fresh and path not in added}
    for path, place in wanted.items():
        shape, here = stored[path][1], list(target[place].shape)
        if shape != here:
            raise UserError(f"init_from: {path} is {shape} in {run}, and {here} here; "
                            "init_from.fresh can leave it new.")
    try:
        chosen = [stored[path][0] for path in wanted]
        if published:
            found = weights.read(run, chosen)
        else:
            found = arrays(run / "checkpoints", number,
                           "|".join(map(re.escape, chosen))) if wanted else {}
    except ValueError as error:
        raise UserError(f"init_from: {error}.") from error
    others = {} if more is None else weights.read(more, list(added))
    taken = {}
    for path, place in {**wanted, **{p: places[p] for p in added}}.items():
        old = target[place]
        x = others[path] if path in added else found[stored[path][0]]
        if published and path not in added:
            x = weights.from_torch(path, x, old.shape, layout)
        taken[place] = distributed.put(x.astype(old.dtype), old.sharding)
        average = "ema/" + place.removeprefix("params/")
        if average in target:
            taken[average] = jax.numpy.copy(taken[place])
    unused = len(set(stored) - set(wanted))
    leaves = [taken.get(p, x) for p, x in target.items()]
    return jax.tree.unflatten(jax.tree.structure(state), leaves), (
        f"started from {origin}: {len(wanted)} arrays taken, "
        f"{len(fresh)} fresh, {unused} unused" + (f", {len(added)} of {more}" if more else ""))
