"""Distillation of a teacher into a student: Hinton et al. (2015), https://arxiv.org/abs/1503.02531,
and of its feature maps: Romero et al. (2015), https://arxiv.org/abs/1412.6550."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Fraction, NonNegative
from jaxdl.data.transforms import clean
from jaxdl.errors import UserError, nearest
from jaxdl.task import Aux, Batch, Mean
from jaxdl.tasks.classification import at_least_two
from jaxdl.tasks.wrapped import Wrapped, aside, beside, observed, without

Array = jax.Array

TEACHER, REGRESSORS = "teacher", "regressors"


@dataclass(frozen=True, kw_only=True)
class Distillation(Wrapped):
    """(1 - weight) * the loss inside + weight * T^2 KL(softmax(t / T) || softmax(s / T)), in
    training; evaluation is that of the student.

    t and s are the logits of teacher and student (section 2; T^2 keeps the size of the gradients).
    With `hints`, feature_weight times the mean square of the difference between the named maps is
    added, the student's brought to the teacher's channels by a linear map (Romero et al. 2015,
    equation 3); sides that differ are averaged to the smaller one.

    The teacher lies among the parameters as "teacher", is never trained, and gets no gradient. It
    comes from its run by

        InitFrom(path=RUN, rename=(("^params/", "params/teacher/"),
                                   ("^mutable/batch_stats/", "mutable/batch_stats/teacher/")),
                 fresh=("(params|mutable/batch_stats)/(?!teacher/).*",))

    Attributes:
      teacher: Linen module, called as the student is: model(batch[input], train).
      temperature: T.
      weight: of the soft targets.
      hints: (layer of the student, layer of the teacher) pairs, module paths such as "stage2".
      feature_weight: of each hint.
      input: field of the batch that the teacher sees.
    """

    teacher: nn.Module
    temperature: NonNegative = 4.0
    weight: Fraction = 0.9
    hints: tuple[tuple[str, str], ...] = ()
    feature_weight: NonNegative = 1.0
    input: str = "image"

    not_applicable: ClassVar[Mapping[str, str]] = {
        "initial_loss": "the loss depends on what the teacher says",
        "modes": "what the teacher says counts in training alone",
        "overfits": "the loss depends on what the teacher says",
        "shuffled_labels": "the teacher's targets do not depend on the labels"}

    def freezes(self) -> tuple[str, ...]:
        return (*self.freeze, *beside(REGRESSORS, self.task.freezes()), f"{TEACHER}/.*")

    def inward(self, variables: dict[str, Any]) -> dict[str, Any]:
        return without(without(variables, TEACHER), REGRESSORS)

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        if not variables:
            return self._fresh(variables, batch, key)
        inner, student = self.inside(), self.inward(variables)
        if not train:
            return inner.loss(student, batch, key, train=False)
        ours = [name for name, _ in self.hints]
        mean, aux, outputs = observed(inner, student, batch, key, train=True, layers=ours)
        seen = self._taught(variables, batch, key)
        mask = batch["mask"]
        s, t = (at_least_two(x) / self.temperature for x in (outputs[""], seen[""]))
        soft = jax.nn.softmax(t) * (jax.nn.log_softmax(t) - jax.nn.log_softmax(s))
        soft = Mean.of(self.temperature ** 2 * soft.sum(-1), mask)
        # The task inside may count fewer examples than have soft targets: those with labels.
        scale = mean.count / jnp.where(soft.count > 0, soft.count, 1)
        total = (1 - self.weight) * mean.total + self.weight * scale * soft.total
        found = {**aux.metrics, "hard_loss": mean, "soft_loss": soft}
        regressors = variables["params"].get(REGRESSORS, {})
        for i, (mine, its) in enumerate(self.hints):
            with aside():
                x = nn.Dense(seen[its].shape[-1]).apply(
                    {"params": regressors[f"hint{i}"]}, outputs[mine])
            a, b = _same_size(x, seen[its])  # type: ignore[arg-type]
            hint = Mean.of(((a - b) ** 2).reshape(len(mask), -1).mean(-1), mask)
            total += self.feature_weight * scale * hint.total
            found[f"{its}_hint"] = hint
        mutable = {name: {**tree, TEACHER: variables[name][TEACHER]}
                   if TEACHER in variables[name] else tree for name, tree in aux.mutable.items()}
        penalty = None if aux.penalty is None else (1 - self.weight) * aux.penalty
        return Mean(total, mean.count), replace(aux, metrics=found, mutable=mutable,
                                                penalty=penalty)

    def _taught(self, variables: dict[str, Any], batch: Batch, key: Array) -> dict[str, Array]:
        """The teacher's output ("") and the layers of the hints."""
        given = {name: tree[TEACHER] for name, tree in variables.items() if TEACHER in tree}
        names, known, seen = [its for _, its in self.hints], [], {}

        def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            output = call(*args, **kwargs)
            path = "/".join(context.module.path)
            known.append(path)
            if context.method_name == "__call__" and path in names:
                seen[path] = jax.lax.stop_gradient(output.astype(jnp.float32))
            return output

        with aside(), nn.intercept_methods(watch):
            x = clean({"image": batch[self.input], "mask": batch["mask"]})["image"]
            output, _ = self.apply(self.teacher, given, x, key=key, train=False)
        for name in names:
            if name not in seen:
                raise UserError(f"Distillation: hints: the teacher has no {name!r}."
                                f"{nearest(name, known)}")
        return {**seen, "": jax.lax.stop_gradient(output)}

    def _fresh(self, variables: dict[str, Any], batch: Batch, key: Array) -> tuple[Mean, Aux]:
        ours = [name for name, _ in self.hints]
        mean, aux, outputs = observed(self.inside(), variables, batch, key, train=False,
                                      layers=ours)
        given: dict[str, Any] = {}
        with aside():
            self.apply(self.teacher, given, batch[self.input], key=jax.random.fold_in(key, 1),
                       train=False)
        for name, tree in given.items():
            variables[name] = {**variables.get(name, {}), TEACHER: tree}
        if self.hints:
            seen = jax.eval_shape(lambda: self._taught(variables, batch, key))
            with aside():
                variables["params"] = {**variables["params"], REGRESSORS: {
                    f"hint{i}": nn.Dense(seen[its].shape[-1]).init(
                        jax.random.fold_in(key, 2 + i), outputs[mine])["params"]
                    for i, (mine, its) in enumerate(self.hints)}}
        return mean, aux


def _same_size(a: Array, b: Array) -> tuple[Array, Array]:
    """Two maps [B, H, W, C] averaged to the smaller height and width."""
    if a.ndim != 4 or a.shape == b.shape:
        return a, b
    size = [min(x, y) for x, y in zip(a.shape[1:3], b.shape[1:3], strict=True)]

    def pooled(x: Array) -> Array:
        window = tuple(n // m for n, m in zip(x.shape[1:3], size, strict=True))
        if any(n % m for n, m in zip(x.shape[1:3], size, strict=True)):
            raise UserError(f"Distillation: hints: maps of {a.shape[1]} x {a.shape[2]} and "
                            f"{b.shape[1]} x {b.shape[2]}: one is no multiple of the other.")
        return nn.avg_pool(x, window, window)

    return pooled(a), pooled(b)
