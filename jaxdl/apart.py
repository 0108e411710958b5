"""A traced function taken apart, to find where a NaN or infinity in its results began.

All that is computed on the way is measured. From a result that is not finite the search goes back,
always to an operand that is not finite either, until it comes to an operation all of whose operands
are finite, or to an operand of the function itself. The layer and the line of code are those that
JAX keeps with each operation. An infinity that disappears again (a masked logit, an overflow under
1 / (1 + exp(x))) leads to no such result, and is never blamed.
"""

import dataclasses
import functools
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.extend.core as core
import jax.numpy as jnp
import numpy as np

Kind = Literal["", "inf", "nan"]  # of an array: what it holds; "" for finite
Part = Literal["before", "forward", "backward", "after", ""]  # of a training step, around its loss
CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call",
         "custom_vjp_call_jaxpr", "checkpoint", "remat", "remat2")
# JAX writes the layer of an operation as "transpose(jvp(MLP))/checkpoint/dense1".
TRANSFORMED = re.compile(r"\w+\(|\)")
LOOPS = ("scan", "while")
VIEWS = ("reshape", "transpose", "broadcast_in_dim", "squeeze", "neg", "copy", "stop_gradient")
# Compiled to run once.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
NOISE = re.compile(r"while|body|cond|checkpoint|rematted_computation|closed_call|branch_\d+_fun")


@dataclass(frozen=True)
class Row:
    """One operation.

    Attributes:
      layer: its path, "" outside of all layers.
      part: "before" the loss (transforms), "forward", "backward", or "after" it (the update).
      operation: the name of the primitive.
      taken: the largest absolute value of its operands.
      given: the same of its results; NaN where one is.
    """

    layer: str = ""
    part: Part = ""
    operation: str = ""
    taken: float = 0.
    given: float = 0.

    @property
    def kind(self) -> Kind:
        return kind(self.given)


@dataclass
class Origin:
    """Where it began: an operand of the function, or an operation.

    Attributes:
      operand: the number of the operand; None for an operation, of which is the rest.
      row: the operation.
      line: "FILE:LINE (FUNCTION)", "" if unknown.
      ranges: of each operand that is a float: least and greatest finite value.
      wrong: where the result is NaN; if it is nowhere, where it is infinite.
      turns: of the loops that it is in, from the outermost: (turn, of how many, None if unknown).
      rows: all that was computed, in order; then the same inside of what holds the operation.
    """

    operand: int | None = None
    row: Row = Row()
    line: str = ""
    ranges: list[tuple[float, float]] = field(default_factory=list)
    wrong: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
    turns: list[tuple[int, int | None]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


def origin(function: Any, operands: Sequence[Any], results: Sequence[int], forward: Sequence[bool],
           alive: Callable[[], None] = lambda: None) -> Origin | None:
    """Where the first of some results that is not finite comes from; None if all are finite.

    Args:
      function: its closed jaxpr.
      operands: the leaves of its arguments.
      results: the numbers of results, in the order in which to look at them.
      forward: of each result, whether it belongs to the forward pass: what such a one needs does.
      alive: called now and then; may raise.
    """
    measured = Measured(function, operands, [False] * len(operands), forward, alive)
    first = next((i for i in results if measured.kind(measured.jaxpr.outvars[i])), None)
    return None if first is None else measured.origin(first)


class Measured:
    """What every operation of a closed jaxpr gives.

    Args:
      function: the closed jaxpr.
      operands: what it is applied to.
      granted: of each operand, whether it is not at fault if it is not finite.
      forward: of each result, whether it belongs to the forward pass.
      alive: called now and then; may raise.
      around: the operation that this is the inside of.
    """

    def __init__(self, function: Any, operands: Sequence[Any], granted: Sequence[bool],
                 forward: Sequence[bool], alive: Callable[[], None], around: Row | None = None
                 ) -> None:
        self.function, self.jaxpr, self.operands = function, function.jaxpr, operands
        self.alive, self.around = alive, around
        self.granted: set[Any] = {v for v, g in zip(self.jaxpr.invars, granted, strict=True) if g}
        self.granted |= set(self.jaxpr.constvars)  # whoever traced put it there
        self.forward = self._needed(forward)
        needed = self._needed([True] * len(self.jaxpr.outvars))
        self.place = {v: -1 for v in [*self.jaxpr.invars, *self.jaxpr.constvars]}
        equations = [(i, e) for i, e in enumerate(self.jaxpr.eqns)
                     if not needed.isdisjoint(e.outvars)]
        self.place |= {v: i for i, e in equations for v in e.outvars}
        # A view is as large as what it is a view of.
        views = {e.outvars[0]: e.invars[0] for _, e in equations if e.primitive.name in VIEWS
                 and _is_var(e.invars[0])}
        floats = [v for v in self.place if v not in views and _is_float(v.aval)]
        alive()
        found = self._values(floats, len(self.jaxpr.eqns), lambda values: jnp.stack(
            [largest(x) for x in values]) if values else jnp.zeros(0))
        self.found = dict(zip(floats, map(float, found), strict=True))
        for view, of in views.items():
            self.found[view] = self.found.get(of, 0.)
        self.rows: dict[int, Row] = {}  # by the number of the operation
        for i, equation in equations:
            if any(map(self.kind, equation.invars)) and all(
                    not _is_var(v) or v in self.granted for v in equation.invars):
                self.granted |= set(equation.outvars)
            self.rows[i] = Row(*self._layer(equation), equation.primitive.name,
                               worst(map(self.largest, equation.invars)),
                               worst(map(self.largest, equation.outvars)))

    def largest(self, var: Any) -> float:
        """The largest absolute value; NaN if there is one; 0 of what is no float."""
        if _is_var(var):
            return self.found.get(var, 0.)
        return float(largest(var.val)) if _is_float(var.val) else 0.

    def kind(self, var: Any) -> Kind:
        return kind(self.largest(var))

    def _values(self, of: list[Any], end: int, then: Callable[[list[Any]], Any]) -> Any:
        """What these arrays are after so many operations, and what `then` makes of them."""
        function = core.jaxpr_as_fun(core.ClosedJaxpr(core.Jaxpr(
            self.jaxpr.constvars, self.jaxpr.invars, of, self.jaxpr.eqns[:end],
            self.jaxpr.effects), self.function.consts))
        return jax.jit(lambda *operands: then(function(*operands)), compiler_options=quickly())(
            *self.operands)

    def origin(self, result: int) -> Origin:
        """Where a result that is not finite comes from."""
        var = self.jaxpr.outvars[result]
        chain: dict[int, Any] = {}  # by the number of the operation, its result on the way
        while True:
            if self.place[var] < 0:
                return Origin(self.jaxpr.invars.index(var), rows=[*self.rows.values()])
            at = self.place[var]
            chain[at] = var
            found = [v for v in self.jaxpr.eqns[at].invars
                     if _is_var(v) and v not in self.granted and self.kind(v)]
            if self.kind(var) == "nan":
                found = [v for v in found if self.kind(v) == "nan"] or found
            if not found:
                break
            var = min(found, key=lambda v: self.place[v])
        if any(self.kind(v) == "inf" for v in self.jaxpr.eqns[at].invars):
            # An infinity that somebody meant, such as that of a mask: it began where the infinity
            # became a NaN.
            at = next((i for i, v in reversed(chain.items()) if self.kind(v) == "nan"), at)
        return self._opened(at, chain[at])

    def _opened(self, at: int, result: Any) -> Origin:
        """The operation with such a result, or the one inside of it."""
        equation, row = self.jaxpr.eqns[at], self.rows[at]
        self.alive()
        slot = equation.outvars.index(result)
        operands = [v for v in equation.invars if _is_var(v)]
        *known, given = self._values([*operands, result], at + 1, list)
        values = iter(known)
        taken = [next(values) if _is_var(v) else v.val for v in equation.invars]
        granted = [not _is_var(v) or v in self.granted or bool(self.kind(v))
                   for v in equation.invars]
        inside = functools.partial(Measured, alive=self.alive, around=row, forward=[
            v in self.forward for v in equation.outvars])
        found = opened(equation, taken, granted, slot, inside)
        if found is None:
            row = dataclasses.replace(row, given=self.largest(result))
            wrong = jnp.isnan(given) if row.kind == "nan" else ~jnp.isfinite(given)
            found = Origin(None, row, line(equation), [extremes(x) for x in taken if _is_float(x)],
                           np.asarray(wrong))
        found.line = found.line or line(equation)
        found.rows = [*self.rows.values(), *found.rows]
        return found

    def _needed(self, asked: Sequence[bool]) -> set[Any]:
        """All that these results are computed from, themselves included."""
        found = {v for v, a in zip(self.jaxpr.outvars, asked, strict=True) if a and _is_var(v)}
        for equation in reversed(self.jaxpr.eqns):
            if not found.isdisjoint(equation.outvars):
                found |= {*filter(_is_var, equation.invars)}
        return found

    def _layer(self, equation: Any) -> tuple[str, Part]:
        """(layer, part) of an operation. What only the backward pass needs of a layer is traced
        with the forward pass, but no result of that depends on it."""
        stack = str(equation.source_info.name_stack)
        names = [n for n in TRANSFORMED.sub("", stack).split("/") if n and not NOISE.fullmatch(n)]
        layer, around = "/".join(names), self.around
        if around is not None and not layer.startswith(around.layer):
            layer = f"{around.layer}/{layer}".rstrip("/")
        if "transpose(" in stack:
            return layer, "backward"
        if "jvp(" in stack or names:
            return layer, "backward" if self.forward.isdisjoint(equation.outvars) else "forward"
        # A loop over micro-batches holds all parts.
        if around is not None and (around.part in ("forward", "backward")
                                   or around.operation not in LOOPS):
            return layer, around.part
        begun = any(row.part in ("forward", "backward") for row in self.rows.values())
        return layer, "after" if begun else "before"


def opened(equation: Any, taken: list[Any], granted: list[bool], result: int,
           inside: Callable[..., Measured]) -> Origin | None:
    """Where inside of an operation one of its results began not to be finite; None where it has no
    inside, or none that is computed alike."""
    params, name = equation.params, equation.primitive.name
    if name in LOOPS:
        return of_loop(equation, taken, granted, result, inside)
    if name == "cond":
        body, taken, granted = params["branches"][int(taken[0])], taken[1:], granted[1:]
    elif name in CALLS:
        body = next(p for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if (p := params.get(k)))
    else:
        return None
    measured = inside(closed(body), taken, granted)
    return measured.origin(result) if measured.kind(measured.jaxpr.outvars[result]) else None


def of_loop(equation: Any, taken: list[Any], granted: list[bool], result: int,
            inside: Callable[..., Measured]) -> Origin | None:
    """The same inside of a scan or a while loop: in the first turn that gives such a result."""
    params = equation.params
    count: int | None = None
    xs: list[Any] = []
    asked: Any = None  # whether there is another turn
    if equation.primitive.name == "scan":
        (fixed, carried), count = of_scan(params), params["length"]
        body, xs = closed(params["jaxpr"]), taken[fixed + carried:]
    else:
        fixed, of_asked = params["body_nconsts"], params["cond_nconsts"]
        body, condition = closed(params["body_jaxpr"]), closed(params["cond_jaxpr"])
        asked = functools.partial(jax.jit(core.jaxpr_as_fun(condition)), *taken[:of_asked])
        taken, granted = taken[of_asked:], granted[of_asked:]
        carried = len(taken) - fixed
    turn_of = jax.jit(core.jaxpr_as_fun(body), compiler_options=quickly())

    def first(slot: int) -> tuple[int, list[Any]] | None:
        """(the turn that made this result not finite, what it took)."""
        carry, turn = taken[fixed:fixed + carried], 0
        while bool(asked(*carry)[0]) if count is None else turn < count:
            at = count - 1 - turn if count is not None and params["reverse"] else turn
            operands = [*taken[:fixed], *carry, *(x[at] for x in xs)]
            given = turn_of(*operands)
            if not jnp.isfinite(given[slot]).all():
                return turn, operands
            carry, turn = given[:carried], turn + 1
        return None

    while (found := first(result)) is not None:
        turn, operands = found
        # What an earlier turn made is looked for there.
        free = [bool(turn) and fixed <= i < fixed + carried for i in range(len(operands))]
        finite = [not _is_float(x) or bool(jnp.isfinite(x).all()) for x in operands]
        measured = inside(body, operands, [
            not f and (g or not fine) for f, g, fine in zip(free, granted, finite, strict=True)])
        if not measured.kind(measured.jaxpr.outvars[result]):
            return None
        origin = measured.origin(result)
        if origin.operand is None:
            origin.turns = [(turn, count), *origin.turns]
            return origin
        result = origin.operand - fixed
    return None


def of_scan(params: Mapping[str, Any]) -> tuple[int, int]:
    """How many of its operands are constants, and how many are carried."""
    if "num_carry" in params:  # of an earlier jax than 0.12
        return params["num_consts"], params["num_carry"]
    fixed, carried, _ = (len(list(part)) for part in params["ft_in"].unpack())
    return fixed, carried


def largest(x: Any) -> Any:
    """The largest absolute value of an array; NaN if there is one."""
    return jnp.max(jnp.abs(x), initial=0).astype(jnp.float32)


def worst(values: Iterable[float]) -> float:
    """The largest of some absolute values; NaN if there is one."""
    return max(values, key=lambda x: (math.isnan(x), x), default=0.)


def kind(largest: float) -> Kind:
    return "nan" if math.isnan(largest) else "inf" if math.isinf(largest) else ""


def quickly() -> dict[str, Any] | None:
    return QUICKLY if jax.default_backend() == "cpu" else None


def closed(jaxpr: Any) -> Any:
    return jaxpr if hasattr(jaxpr, "consts") else core.ClosedJaxpr(jaxpr, ())


def extremes(x: Any) -> tuple[float, float]:
    """(least, greatest) of what is finite in an array; NaN where nothing is."""
    x = np.asarray(x)
    x = np.abs(x) if x.dtype.kind == "c" else x.astype(np.float64)
    x = x[np.isfinite(x)]
    return (float(x.min()), float(x.max())) if x.size else (float("nan"), float("nan"))


def line(equation: Any) -> str:
    """The innermost line of code of an operation that is the user's or jaxdl's; "" if unknown."""
    own = str(Path(__file__).parent)
    trace = equation.source_info.traceback
    for frame in trace.frames if trace else ():
        name = frame.file_name
        if name.startswith(own) or not (
                "site-packages" in name or name.startswith((sys.base_prefix, "<"))):
            path, here = Path(name), Path.cwd()
            path = path.relative_to(here) if path.is_relative_to(here) else path
            return f"{path}:{frame.line_num} ({frame.function_name.split('.')[-1]})"
    return ""


def _is_var(x: Any) -> bool:
    return not hasattr(x, "val")


def _is_float(x: Any) -> bool:
    return jnp.issubdtype(x.dtype if hasattr(x, "dtype") else type(x), jnp.inexact)
