"""A student learns a teacher's soft targets and feature maps; the teacher stays as it is."""

import dataclasses
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import cli, config
from jaxdl.checkpoint import arrays
from jaxdl.errors import UserError
from jaxdl.models.cnn import CNN
from jaxdl.models.mlp import MLP
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.deep_supervision import DeepSupervision
from jaxdl.tasks.distillation import Distillation
from jaxdl.tasks.semi_supervised import FixMatch
from jaxdl.tasks.sharpness import SAM

INNER = Classification(model=CNN(channels=(2, 3), dense=(), classes=3))
TEACHER = CNN(channels=(4, 5), dense=(6,), classes=3, batch_norm=True)
BATCH = {"image": jax.random.normal(jax.random.key(0), (4, 8, 8, 1)),
         "label": jnp.array([0, 1, 2, 1]), "mask": jnp.array([1., 1., 1., 0.]),
         "index": jnp.arange(4)}
TASK = Distillation(task=INNER, teacher=TEACHER, temperature=3.0, weight=0.75)
TX = optax.sgd(0.1)


def variables_of(state: Any) -> dict[str, Any]:
    return {"params": {**state.params, **state.frozen}, **state.mutable}


def trained(task: Any, steps: int, batch: Any = BATCH) -> list[Any]:
    states = [jax.jit(lambda: task.init(jax.random.key(1), batch, TX))()]
    step = jax.jit(lambda state: task.step(state, batch, TX)[0])
    for _ in range(steps):
        states.append(step(states[-1]))
    return states


def test_the_loss_is_that_of_the_paper() -> None:
    state = trained(TASK, 0)[0]
    assert list(state.frozen) == ["teacher"] and "teacher" not in state.params
    variables = variables_of(state)
    mean, aux = TASK.loss(variables, BATCH, jax.random.key(0), train=True)
    s = INNER.model.apply({"params": state.params}, BATCH["image"], train=True)
    t = TEACHER.apply({"params": state.frozen["teacher"], "batch_stats":
                       state.mutable["batch_stats"]["teacher"]}, BATCH["image"], train=False)
    s, t = (np.asarray(x, np.float64)[:3] for x in (s, t))
    p, q = (np.exp(x / 3) / np.exp(x / 3).sum(-1, keepdims=True) for x in (t, s))
    soft = 9 * (p * np.log(p / q)).sum()
    hard = -np.log((np.exp(s) / np.exp(s).sum(-1, keepdims=True))[np.arange(3), [0, 1, 2]]).sum()
    np.testing.assert_allclose(aux.metrics["soft_loss"].total, soft, rtol=1e-4)
    np.testing.assert_allclose(mean.total, 0.25 * hard + 0.75 * soft, rtol=1e-4)
    evaluated, _ = TASK.loss(variables, BATCH, jax.random.key(0), train=False)
    np.testing.assert_allclose(evaluated.total, hard, rtol=1e-5)


def test_the_teacher_stays_and_gets_no_gradient() -> None:
    first, last = (states := trained(TASK, 4))[0], states[-1]
    chex.assert_trees_all_equal(first.frozen, last.frozen)
    chex.assert_trees_all_equal(first.mutable, last.mutable)  # the student has none of its own
    assert all(bool((a != b).any()) for a, b in zip(
        jax.tree.leaves(first.params), jax.tree.leaves(last.params), strict=True))
    gradient = jax.grad(lambda v: TASK.loss(v, BATCH, jax.random.key(0), train=True)[0].total)(
        variables_of(first))
    assert not any(x.any() for x in jax.tree.leaves(gradient["params"]["teacher"]))
    masked = {**BATCH, "image": BATCH["image"].at[3].set(jnp.nan)}
    chex.assert_trees_all_close(trained(TASK, 4, masked)[-1].params, last.params, rtol=1e-5)


def test_hints_bring_feature_maps_together() -> None:
    task = dataclasses.replace(TASK, hints=(("conv2", "conv1"),), feature_weight=2.0)
    state = trained(task, 0)[0]
    assert jax.tree.map(jnp.shape, state.params["regressors"]) == {
        "hint0": {"bias": (4,), "kernel": (3, 4)}}
    variables = variables_of(state)
    mean, aux = task.loss(variables, BATCH, jax.random.key(0), train=True)
    plain, _ = TASK.loss(variables, BATCH, jax.random.key(0), train=True)
    np.testing.assert_allclose(mean.total - plain.total, 2 * aux.metrics["conv1_hint"].total,
                               rtol=1e-4)
    first, last = (states := trained(task, 30))[0], states[-1]
    apart = [float(task.loss(variables_of(x), BATCH, jax.random.key(0), train=True)[1]
                   .metrics["conv1_hint"].value()) for x in (first, last)]
    assert apart[1] < 0.7 * apart[0]
    with pytest.raises(UserError, match=r"hints: the teacher has no 'conv9'. Did you mean 'conv"):
        trained(dataclasses.replace(task, hints=(("conv2", "conv9"),)), 0)
    with pytest.raises(UserError, match="layers: the model has no 'conv9'"):
        trained(dataclasses.replace(task, hints=(("conv9", "conv1"),)), 0)


@pytest.mark.parametrize("wrap", [
    lambda t: SAM(task=t), lambda t: dataclasses.replace(t, task=SAM(task=INNER)),
    lambda t: dataclasses.replace(t, task=DeepSupervision(task=INNER, layers=("conv1",),
                                                          classes=3)),
    lambda t: DeepSupervision(task=t, layers=("conv1",), classes=3),
    lambda t: dataclasses.replace(t, accumulate=2, ema=0.9)])
def test_it_composes(wrap: Any) -> None:
    task = wrap(TASK)
    first, last = (states := trained(task, 3))[0], states[-1]
    chex.assert_trees_all_equal(first.frozen, last.frozen)
    assert list(first.frozen) == ["teacher"]
    assert np.isfinite(task.evaluate(last, BATCH)["loss"].value())
    assert task.logits(last, BATCH).shape == (4, 3)
    assert config.from_json(config.to_json(task)) == task


def test_the_teacher_comes_from_its_run(tmp_path: Path) -> None:
    """As the docstring says; and the student beside it is fresh."""
    teacher, student = tmp_path / "teacher.py", tmp_path / "student.py"
    head = '''
from jaxdl.data.digits import Digits
from jaxdl.experiment import Experiment, InitFrom
from jaxdl.models.cnn import CNN
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import SGD
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.distillation import Distillation

TEACHER = CNN(channels=(3,), dense=(), classes=10, batch_norm=True)

def config():
    return Experiment(task=TASK, data=Digits(), optimizer=SGD(), steps=2, batch_size=8, INIT)
'''
    teacher.write_text(head.replace("TASK", "Classification(model=TEACHER)").replace("INIT", ""))
    run = tmp_path / "run"
    assert cli.main([f"--experiment={teacher}", f"--workdir={run}"]) == 0
    rename = '(("^params/", "params/teacher/"), ' \
             '("^mutable/batch_stats/", "mutable/batch_stats/teacher/"))'
    assert rename.split("), (")[0][2:] in " ".join((Distillation.__doc__ or "").split())
    student.write_text(head.replace(
        "TASK", "Distillation(task=Classification(model=MLP(widths=(5,), classes=10)), "
        "teacher=TEACHER)").replace("INIT", f"init_from=InitFrom(path={str(run)!r}, "
        f"rename={rename}, fresh=('(params|mutable/batch_stats)/(?!teacher/).*',))"))
    other = tmp_path / "other"
    assert cli.main([f"--experiment={student}", f"--workdir={other}"]) == 0
    before, after = (arrays(x / "checkpoints", 2) for x in (run, other))
    taken = {p: x for p, x in after.items() if "/teacher/" in p and "opt" not in p}
    assert len(taken) == 7
    for path, x in taken.items():
        old = path.replace("frozen/teacher/", "params/").replace("teacher/", "")
        np.testing.assert_array_equal(x, before[old])
    assert "state/params/dense1/kernel" in after


def test_a_teacher_of_one_logit() -> None:
    task = Distillation(task=Classification(model=MLP(widths=(4,), classes=1)),
                        teacher=MLP(widths=(6,), classes=1), weight=0.5)
    batch = {**BATCH, "label": BATCH["label"] % 2}
    assert np.isfinite(task.evaluate(trained(task, 2, batch)[-1], batch)["loss"].value())


def test_of_what_has_few_labels_the_soft_targets_count_once() -> None:
    """The task inside counts the labelled half, and has a penalty."""
    fix = FixMatch(task=Classification(model=MLP(widths=(), classes=3)), threshold=0., weak=(),
                   strong=())
    task = Distillation(task=fix, teacher=MLP(widths=(4,), classes=3), weight=0.75)
    batch = {**BATCH, "mask": jnp.ones(4), "labelled": jnp.array([1., 0., 1., 0.])}
    state = trained(task, 0, batch)[0]
    mean, aux = task.loss(variables_of(state), batch, jax.random.key(0), train=True)
    assert (mean.count, aux.metrics["soft_loss"].count) == (2, 4)
    np.testing.assert_allclose(mean.value(), 0.25 * aux.metrics["hard_loss"].value()
                               + 0.75 * aux.metrics["soft_loss"].value(), rtol=1e-5)
    np.testing.assert_allclose(aux.penalty, 0.25 * aux.metrics["unlabelled_loss"].value(),
                               rtol=1e-5)
