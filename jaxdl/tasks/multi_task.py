"""Several tasks over a shared trunk, and how their losses are balanced."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxdl.config import NonNegative, Regex
from jaxdl.errors import UserError, nearest
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState, matching, merge, partition
from jaxdl.tasks.wrapped import with_gradient, with_options, without_options

Array = jax.Array

SHARED, BALANCE = "shared", "balance"


@dataclass(frozen=True, kw_only=True)
class MultiTask(LossTask):
    """The weighted sum of the losses of several tasks, whose networks have parameters in common.

    What a path of `shared` names exists once, as "shared/PATH"; the rest of a task's parameters is
    its own, as "NAME/PATH". All see the same batch, in which `fields` says where a task finds its
    label. A metric of a task is logged as "NAME_METRIC". The weights are

    - "fixed": `weights`, one where none is given;
    - "uncertainty": exp(-s) L + s / 2 with s = log sigma^2 trained for each task (Kendall et al.
      2018, https://arxiv.org/abs/1705.07115, section 3.2);
    - "gradnorm": n softmax(v), trained so that the norms of the weighted gradients of the shared
      parameters agree, higher for tasks that learn slower by the power `alpha` (Chen et al. 2018,
      https://arxiv.org/abs/1711.02257, equation 2; there the weights are scaled to the sum n);
    - "pcgrad": `weights`, and from the gradient of each task its part against that of each other
      task is taken away, in a random order (Yu et al. 2020, https://arxiv.org/abs/2001.06782,
      algorithm 1).

    Where a batch is split (`accumulate`, parallel=pmap), "gradnorm" and "pcgrad" work on each part,
    and so do tasks with masks of their own: the mean of the parts' means is what is trained.

    A network of one of the tasks is taken into another run by `init_from` with
    rename=(("^params/(shared|NAME)/", "params/"),).

    Attributes:
      tasks: by name; their options (freeze, ema, ...) are those of this task.
      shared: regexes of parameter paths (and of statistics) such as "conv.*"; each must be there,
        with the same shape, in every task that has it.
      fields: for a task, field of its batch -> field of the batch: {"parity": {"label": "odd"}}; a
        "mask" of its own leaves out examples without a label.
      weights: of the tasks.
      balance: how they are weighted.
      alpha: of gradnorm.
    """

    tasks: Mapping[str, LossTask]
    shared: tuple[Regex, ...]
    fields: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    weights: Mapping[str, NonNegative] = field(default_factory=dict)
    balance: Literal["fixed", "uncertainty", "gradnorm", "pcgrad"] = "fixed"
    alpha: NonNegative = 1.5

    def __post_init__(self) -> None:
        if len(self.tasks) < 2:
            raise UserError("MultiTask: tasks: two at least.")
        for name, task in self.tasks.items():
            if name in (SHARED, BALANCE) or "/" in name:
                raise UserError(f"MultiTask: tasks: {name!r} cannot be a name here.")
            without_options(task, self, f"its task {name!r}")
        if self.weights and self.balance in ("uncertainty", "gradnorm"):
            raise UserError(f"MultiTask: weights: balance={self.balance} finds its own.")
        for what in ("fields", "weights"):
            for name in getattr(self, what):
                if name not in self.tasks:
                    raise UserError(f"MultiTask: {what}: no task {name!r}."
                                    f"{nearest(name, self.tasks)}")

    @property
    def not_applicable(self) -> Mapping[str, str]:
        """Checks that would tell nothing."""
        weighted = {"modes": "the weights of the losses are in training alone"}
        parts = {"accumulation": "gradients are compared, and masks of one task counted, in each "
                                 "micro-batch"}
        own = any("mask" in names for names in self.fields.values())
        return {"initial_loss": "the sum of the losses of several tasks",
                **(weighted if self.balance in ("uncertainty", "gradnorm") else {}),
                **(parts if own or self.balance in ("gradnorm", "pcgrad") else {})}

    @property
    def target_fields(self) -> tuple[str, ...]:
        """The fields that are to be predicted."""
        return tuple(dict.fromkeys(self.fields.get(n, {}).get("label", "label")
                                   for n in self.tasks))

    def freezes(self) -> tuple[str, ...]:
        return (*self.freeze, *(f"(?:{SHARED}|{re.escape(name)})/(?:{pattern})"
                                for name, task in self.tasks.items() for pattern in task.freezes()))

    def inside(self, name: str) -> Any:
        """One of the tasks, with the type that this one computes in."""
        # Regexes of `freeze` are of paths here.
        return with_options(self.tasks[name], self, freeze=(), variables=lambda state: self.own(
            name, self.variables(state)))

    def own(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The variables of one of the tasks."""
        return {collection: merge(tree.get(name, {}), tree.get(SHARED, {}))
                for collection, tree in variables.items()
                if collection != BALANCE and (name in tree or SHARED in tree)}

    def seen(self, name: str, batch: Batch) -> Batch:
        """The batch as a task sees it."""
        try:
            return {**batch, **{its: batch[ours]
                                for its, ours in self.fields.get(name, {}).items()}}
        except KeyError as error:
            raise UserError(f"MultiTask: fields: the batch has no {error}."
                            f"{nearest(error.args[0], batch)}") from error

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        if not variables:
            self._fresh(variables, batch, key)
        found = {name: self._one(name, variables, batch, key, train) for name in self.tasks}
        losses = {name: mean for name, (mean, _) in found.items()}
        metrics: dict[str, Mean] = {}
        mutable: dict[str, Any] = {}
        penalty: Any = None
        for name, (mean, aux) in found.items():
            metrics |= {f"{name}_loss": mean, **{f"{name}_{k}": m for k, m in aux.metrics.items()}}
            for collection, tree in aux.mutable.items():
                mutable.setdefault(collection, {}).update(self._split(tree, name))
        count = batch["mask"].sum()
        scales: dict[str, Any] = {name: self.weights.get(name, 1.) for name in self.tasks}
        extra, gradients = jnp.zeros(()), {}
        trained, frozen = partition(variables["params"], self.freezes())
        if train and self.balance in ("gradnorm", "pcgrad"):
            def value(params: Any, name: str) -> Array:
                given = {**variables, "params": merge(params, frozen)}
                mean, aux = self._one(name, given, batch, key, True)
                return _value(mean) + (0. if aux.penalty is None else aux.penalty)

            gradients = {name: jax.grad(value)(jax.lax.stop_gradient(trained), name)
                         for name in self.tasks}
        if train and self.balance == "uncertainty":
            s = variables["params"][BALANCE]
            scales = {name: jnp.exp(-s[name]) for name in self.tasks}
            extra = jnp.stack([s[name] / 2 for name in self.tasks]).sum()
        if train and self.balance == "gradnorm":
            scales, extra, mutable[BALANCE] = self._gradnorm(variables, losses, gradients)
        total = count * extra
        for name, mean in losses.items():
            # With a mask of its own a task has another count; its mean is weighted, not its sum.
            own = "mask" in self.fields.get(name, {})
            total += scales[name] * mean.total * (count / jnp.maximum(mean.count, 1) if own else 1.)
            if (more := found[name][1].penalty) is not None:
                penalty = scales[name] * more + (0. if penalty is None else penalty)
            if train and self.balance in ("uncertainty", "gradnorm"):
                metrics[f"{name}_weight"] = Mean(count * scales[name], count)
        together = Mean(total, count)
        if gradients and self.balance == "pcgrad":
            weighted = {name: jax.tree.map(lambda g, name=name: scales[name] * g, tree)
                        for name, tree in gradients.items()}
            together = with_gradient(together, trained, _without_conflicts(
                weighted, jax.random.fold_in(key, 1)))
            penalty = jax.lax.stop_gradient(penalty)  # Its gradient is among theirs.
        return together, Aux(metrics=metrics, mutable=mutable, penalty=penalty)

    def logits(self, state: TrainState, batch: Batch) -> Mapping[str, Array]:
        """Of each task."""
        return {name: self.inside(name).logits(state, self.seen(name, batch))
                for name in self.tasks}

    def _one(self, name: str, variables: dict[str, Any], batch: Batch, key: Array,
             train: bool) -> tuple[Mean, Aux]:
        # One key for all: the trunk's dropout is the same in each, and so it is computed once.
        return self.inside(name).loss(self.own(name, variables), self.seen(name, batch), key,
                                      train=train)

    def _split(self, tree: Any, name: str) -> dict[str, Any]:
        """{"shared": ..., NAME: ...} of the variables of one collection of a task."""
        flat = traverse_util.flatten_dict(tree, sep="/")
        common = {p for p in flat if any(re.fullmatch(pattern, p) for pattern in self.shared)}
        parts = {SHARED: {p: x for p, x in flat.items() if p in common},
                 name: {p: x for p, x in flat.items() if p not in common}}
        return {k: traverse_util.unflatten_dict(x, sep="/") for k, x in parts.items() if x}

    def _fresh(self, variables: dict[str, Any], batch: Batch, key: Array) -> None:
        """Fills in the initial variables: the shared ones as the first task draws them."""
        every: dict[str, Any] = {}
        for i, (name, task) in enumerate(self.tasks.items()):
            own: dict[str, Any] = {}
            task.loss(own, self.seen(name, batch), jax.random.fold_in(key, i), train=False)
            flat = traverse_util.flatten_dict(own["params"], sep="/")
            every |= flat
            for collection, tree in own.items():
                parts = self._split(tree, name)
                held = variables.setdefault(collection, {})
                held |= {name: parts[name]} if name in parts else {}
                before: dict[str, Any] = traverse_util.flatten_dict(held.get(SHARED, {}), sep="/")
                more: dict[str, Any] = traverse_util.flatten_dict(parts.get(SHARED, {}), sep="/")
                for path, x in more.items():
                    if (old := before.setdefault(path, x)).shape != x.shape:
                        raise UserError(f"MultiTask: shared: {path} is {x.shape} in {name!r} and "
                                        f"{old.shape} before.")
                held |= {SHARED: traverse_util.unflatten_dict(before, sep="/")} if before else {}
        matching(every, self.shared, "MultiTask: shared")
        if self.balance in ("uncertainty", "gradnorm"):
            variables["params"][BALANCE] = {name: jnp.zeros(()) for name in self.tasks}
        if self.balance == "gradnorm":
            variables[BALANCE] = {name: jnp.zeros(()) for name in self.tasks}

    def _gradnorm(self, variables: dict[str, Any], losses: Mapping[str, Mean],
                  gradients: Mapping[str, Any]) -> tuple[dict[str, Array], Array, Any]:
        """(weights, zero with the gradient of the weights' loss, the losses at the first step)."""
        still = jax.lax.stop_gradient
        names = list(self.tasks)
        v = jnp.stack([variables["params"][BALANCE][n] for n in names])
        weights = len(names) * jax.nn.softmax(v)
        norms = jnp.stack([jnp.sqrt(sum((g ** 2).sum() for g in jax.tree.leaves(
            gradients[n].get(SHARED, {}))) + 1e-24) for n in names])
        now = still(jnp.stack([_value(losses[n]) for n in names]))
        old = jnp.stack([variables[BALANCE][n] for n in names])
        first = jnp.where(old == 0, now, old)
        speed = now / jnp.where(first > 0, first, 1)
        goal = (still(weights) * norms).mean() * (speed / speed.mean()) ** self.alpha
        apart = jnp.abs(weights * norms - goal).sum()
        return (dict(zip(names, still(weights), strict=True)), apart - still(apart),
                dict(zip(names, first, strict=True)))


def _value(mean: Mean) -> Array:
    return mean.total / jnp.where(mean.count > 0, mean.count, 1)


def _without_conflicts(gradients: Mapping[str, Any], key: Array) -> Any:
    """The sum of the gradients, each projected on the normal plane of those it conflicts with."""
    def dot(a: Any, b: Any) -> Array:
        return sum((x * y).sum() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b),
                                                 strict=True))  # type: ignore[return-value]

    trees = list(gradients.values())
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *trees)
    projected = []
    for i, g in enumerate(trees):
        order = jax.random.permutation(jax.random.fold_in(key, i), len(trees))
        for step in range(len(trees)):
            j = order[step]
            other = jax.tree.map(lambda x, j=j: x[j], stacked)
            along = dot(g, other) / jnp.maximum(dot(other, other), 1e-24)
            take = jnp.where(j == i, 0., jnp.minimum(along, 0.))
            g = jax.tree.map(lambda a, b, take=take: a - take * b, g, other)
        projected.append(g)
    return jax.tree.map(lambda *x: sum(x), *projected)
