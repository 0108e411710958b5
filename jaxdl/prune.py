"""Pruning: an optimizer around another one, whose pruned weights are exactly zero after every step.

A mask over each pruned kernel lies in the optimizer's state. The optimizer inside sees no gradient
of a pruned weight, and what it would do to it is replaced by -weight, so that no momentum and no
decay brings it back. Masks only lose weights. An average of parameters (`ema`, or `SWA` from before
the last pruning) still holds what was pruned: `Sparsity` reports what is evaluated.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxdl.config import Count, Fraction, Regex, Size
from jaxdl.errors import UserError
from jaxdl.evaluate import Context
from jaxdl.optimizer import Optimizer
from jaxdl.task import matching, named

Array = jax.Array
Masks = Any  # the tree of the parameters: bool where a weight stays, None for what is not pruned


class PrunedState(NamedTuple):
    """The state of a pruning optimizer.

    Attributes:
      count: updates done.
      masks: of the parameters.
      inner: the state of the optimizer inside.
      kept: (parameters, inner) to rewind to; None if there is no rewinding.
    """

    count: Array
    masks: Masks
    inner: Any
    kept: Any = None


def _inner(name: str) -> Any:
    return property(lambda self: getattr(self.optimizer, name))


@dataclass(frozen=True, kw_only=True)
class Pruning(Optimizer):
    """What is common to ways of pruning: which weights go when a fraction s of them has to.

    learning_rate, clip, l2, weight_decay and rules are those of the optimizer inside; this one has
    none of its own.

    Attributes:
      optimizer: what trains the weights that are left.
      sparsity: fraction of the weights that is zero in the end.
      kind: which weights compete, the least going first. "layer": the |w| of each kernel; "global":
        those of all kernels; "group": those of each `group` consecutive inputs of an output, the
        last axis but one (N:M sparsity, Mishra et al. 2021: 0.5 of a group of 4 is 2:4);
        "channels": the norms of the output channels of each kernel, which go with their bias.
      group: how many inputs a group has.
      only: regexes of the parameters that are pruned, of those of two and more dimensions. Leave
        out the last layer where whole channels go: they are its classes.
    """

    optimizer: Optimizer
    sparsity: Fraction = 0.9
    kind: Literal["layer", "global", "group", "channels"] = "layer"
    group: Size = 4
    only: tuple[Regex, ...] = (".*kernel",)

    # No fields, so that no flag and no record has them twice.
    learning_rate: ClassVar[Any] = _inner("learning_rate")
    clip: ClassVar[Any] = _inner("clip")
    l2: ClassVar[Any] = _inner("l2")
    weight_decay: ClassVar[Any] = _inner("weight_decay")
    rules: ClassVar[Any] = _inner("rules")

    def dense(self, params: Any) -> Masks:
        """Masks that prune nothing yet."""
        flat = {path: x for path, x in named(params).items() if x.ndim >= 2}
        chosen = matching(flat, self.only, "optimizer.only")
        for path in sorted(chosen) if self.kind == "group" else ():
            if (inputs := flat[path].shape[-2]) % self.group:
                raise UserError(f"optimizer.group={self.group}: does not divide the {inputs} inputs"
                                f" of {path}; optimizer.only={self.only} can leave it out.")
        if self.kind == "channels":
            chosen |= {_bias(path) for path in chosen} & {*named(params)}
        return _mapped(lambda path, x: jnp.ones(x.shape, bool) if path in chosen else None, params)

    def pruned(self, params: Any, masks: Masks, sparsity: Array) -> Masks:
        """The masks after so large a fraction of the weights is pruned."""
        weights = named(params)
        flat = {path: jnp.where(mask, jnp.abs(weights[path]), -1.)
                for path, mask in named(masks).items()}  # What is pruned already goes first.
        kernels = {path: x for path, x in flat.items() if x.ndim >= 2}
        if self.kind == "global":
            whole = _largest(jnp.concatenate([x.ravel() for x in kernels.values()]), sparsity)
            parts = jnp.split(whole, _ends([x.size for x in kernels.values()]))
            stay = {path: part.reshape(x.shape)
                    for (path, x), part in zip(kernels.items(), parts, strict=True)}
        else:
            stay = {path: self._alone(x, sparsity) for path, x in kernels.items()}
        stay |= {_bias(path): mask.any(range(mask.ndim - 1)) for path, mask in stay.items()
                 if _bias(path) in flat}
        return _mapped(lambda path, mask: mask & stay[path], masks)

    def _alone(self, x: Array, sparsity: Array) -> Array:
        """Which weights of one kernel stay, by their scores x [..., inputs, outputs]."""
        if self.kind == "layer":
            return _largest(x.ravel(), sparsity).reshape(x.shape)
        if self.kind == "channels":
            norms = jnp.square(x.reshape(-1, x.shape[-1])).sum(0)
            norms = jnp.where(x.max(range(x.ndim - 1)) < 0, -1., norms)
            return jnp.broadcast_to(_largest(norms, sparsity), x.shape)
        groups = x.swapaxes(-1, -2)  # [..., outputs, inputs]
        stay = _largest(groups.reshape(-1, self.group), sparsity)
        return stay.reshape(groups.shape).swapaxes(-1, -2)


@dataclass(frozen=True, kw_only=True)
class Pruned(Pruning):
    """Gradual pruning by magnitude (Zhu & Gupta 2017, https://arxiv.org/abs/1710.01878, equation 1,
    from a sparsity of 0):

        s(t) = sparsity * (1 - (1 - (t - start) / (end - start)) ** 3)

    with t the fraction of the run that is over. start = end = 1 prunes once, after the last step.

    Attributes:
      start: fraction of the run when pruning begins.
      end: fraction of the run when the last weights go; what follows trains the rest.
      every: steps between two prunings.
    """

    start: Fraction = 0.2
    end: Fraction = 0.7
    every: Size = 50

    def build(self, steps: int) -> optax.GradientTransformation:
        inner = self.optimizer.build(steps)
        first = jnp.maximum(jnp.round(self.start * steps), 1).astype(jnp.int32)
        last = jnp.maximum(jnp.round(self.end * steps), first).astype(jnp.int32)

        def init(params: Any) -> PrunedState:
            return PrunedState(jnp.int32(0), self.dense(params), inner.init(params))

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, PrunedState]:
            step: Any = optax.safe_increment(state.count)
            updates, held = inner.update(_masked(updates, state.masks), state.inner, params)
            new = optax.apply_updates(params, updates)
            left = (last - step) / jnp.maximum(last - first, 1)
            due = (step >= first) & (step <= last) & (
                ((step - first) % self.every == 0) | (step == last))
            masks = _when(due, lambda masks: self.pruned(new, masks, self.sparsity * (
                1 - left ** 3)), state.masks)
            return _zeroing(updates, params, masks), PrunedState(step, masks, held)

        return optax.GradientTransformation(init, update)


@dataclass(frozen=True, kw_only=True)
class LotteryTicket(Pruning):
    """Iterative magnitude pruning with rewinding (Frankle & Carbin 2019,
    https://arxiv.org/abs/1803.03635, section 2; Frankle et al. 2020,
    https://arxiv.org/abs/1912.05671, section 3): train to the end, prune, go back to the weights
    of step `rewind`, and train again those that are left.

    A run is `rounds` + 1 trainings of equal length: round r leaves (1 - sparsity) ** (r / rounds)
    of the weights. With the weights the state of the optimizer inside goes back, and with it the
    learning rate; the data goes on, and so do statistics of batch norm.

    Attributes:
      rounds: how often is pruned.
      rewind: step of the first training; 0 is the initialisation.
    """

    rounds: Size = 4
    rewind: Count = 0

    def length(self, steps: int) -> int:
        """Of the first training, in steps; the later ones are shorter by `rewind`."""
        length = (steps + self.rounds * self.rewind) // (self.rounds + 1)
        if length <= self.rewind:
            raise UserError(f"optimizer.rewind={self.rewind}: expected a step of the first of "
                            f"{self.rounds + 1} trainings; with steps={steps} at most "
                            f"{steps - self.rounds - 1}.")
        return length

    def round(self, step: Array, steps: int) -> Array:
        """How often is pruned before this step."""
        length = self.length(steps) - self.rewind
        return jnp.clip((step - self.rewind) // length, 0, self.rounds)

    @property
    def learning_rate(self) -> Any:
        """That of the optimizer inside, which begins anew in each training."""
        def schedule(step: Array, steps: int) -> Array:
            length = self.length(steps)
            at = step - self.round(step, steps) * (length - self.rewind)
            return self.optimizer.learning_rate(at, length)

        return schedule

    def build(self, steps: int) -> optax.GradientTransformation:
        inner = self.optimizer.build(self.length(steps))

        def init(params: Any) -> PrunedState:
            held = inner.init(params)
            return PrunedState(jnp.int32(0), self.dense(params), held,
                               jax.tree.map(jnp.copy, (params, held)))

        def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, PrunedState]:
            step: Any = optax.safe_increment(state.count)
            number = self.round(step, steps)
            updates, held = inner.update(_masked(updates, state.masks), state.inner, params)
            new = optax.apply_updates(params, updates)
            # As they come to the update after it: for 0 after `init_from`, too.
            kept = _chosen(state.count == self.rewind, (params, state.inner), state.kept)
            due = number > self.round(state.count, steps)
            masks = _when(due, lambda masks: self.pruned(new, masks, 1 - (1 - self.sparsity) ** (
                number / self.rounds)), state.masks)
            back = jax.tree.map(jnp.subtract, kept[0], params)
            updates, held = _chosen(due, (back, kept[1]), (updates, held))
            return _zeroing(updates, params, masks), PrunedState(step, masks, held, kept)

        return optax.GradientTransformation(init, update)


def _largest(scores: Array, sparsity: Any) -> Array:
    """Which scores [..., n] are not among the round(sparsity * n) least of the last axis."""
    rank = jnp.argsort(jnp.argsort(scores, -1), -1)
    return rank >= jnp.round(sparsity * scores.shape[-1]).astype(jnp.int32)


def _when(due: Array, compute: Callable[[Any], Any], old: Any) -> Any:
    """compute(old) if it is due, else old. A loop of one round: `lax.cond` would sort at each step
    where trials are mapped, a loop does only when one of them is due."""
    return jax.lax.while_loop(lambda carry: carry[0],
                              lambda carry: (jnp.zeros_like(due), compute(carry[1])),
                              (due, old))[1]


def _chosen(condition: Array, a: Any, b: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def _masked(grads: Any, masks: Masks) -> Any:
    return jax.tree.map(lambda g, m: g if m is None else jnp.where(m, g, 0), grads, masks)


def _zeroing(updates: Any, params: Any, masks: Masks) -> Any:
    """The updates after which what is pruned is exactly zero."""
    return jax.tree.map(lambda u, p, m: u if m is None else jnp.where(m, u, -p), updates, params,
                        masks)


def _mapped(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """The tree of function(path, leaf)."""
    return jax.tree_util.tree_map_with_path(lambda path, x: function(
        jax.tree_util.keystr(path, simple=True, separator="/"), x), tree)


def _bias(path: str) -> str:
    """Of the layer that a kernel belongs to."""
    return f"{path.rpartition('/')[0]}/bias"


def _ends(sizes: list[int]) -> list[int]:
    """Where parts of these sizes end, but for the last."""
    return [sum(sizes[:i + 1]) for i in range(len(sizes) - 1)]


@dataclass(frozen=True, kw_only=True)
class Sparsity:
    """How many of the weights that are evaluated are zero.

    "zeros" is their fraction in all kernels, "PATH" that in each, and "parameters" counts those of
    the whole network that are not zero.

    Attributes:
      every: steps between two evaluations; the last step is always evaluated.
      only: regexes of the parameters that count as kernels, of those of two and more dimensions.
    """

    every: Size = 1_000
    only: tuple[Regex, ...] = (".*kernel",)

    def __call__(self, task: Any, state: Any, context: Context) -> Mapping[str, float]:
        params = named(task.variables(state)["params"])
        left = {path: int(jnp.count_nonzero(x)) for path, x in params.items()}
        kernels = matching([path for path, x in params.items() if x.ndim >= 2], self.only,
                           f"evals.{context.name}.only")
        zeros = {path: params[path].size - left[path] for path in sorted(kernels)}
        return {"zeros": sum(zeros.values()) / sum(params[path].size for path in kernels),
                "parameters": sum(left.values()),
                **{path: count / params[path].size for path, count in zeros.items()}}
