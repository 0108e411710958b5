"""Adversarial networks: losses, the gradient penalty, and the core that does not know of them."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import cli, config
from jaxdl.data.digits import Digits
from jaxdl.errors import UserError
from jaxdl.experiment import Experiment
from jaxdl.models.dcgan import Discriminator, Generator, spectral
from jaxdl.optimizer import SGD, Linear
from jaxdl.tasks.gan import GAN, discriminator_losses, generator_losses
from jaxdl.train import Program

ROOT = Path(__file__).parent.parent
KEY = jax.random.key(0)
BATCH = {"image": jax.random.uniform(KEY, (6, 8, 8, 1), minval=-1.), "index": jnp.arange(6),
         "label": jnp.array([0, 1, 2, 0, 1, 2]), "mask": jnp.array([1., 1., 1., 1., 1., 0.])}
TASK = GAN(generator=Generator(size=8, channels=(6, 4)), discriminator=Discriminator(
    channels=(4, 6)), noise=5)
PLAIN = dataclasses.replace(TASK, generator=Generator(size=8, channels=(6,), batch_norm=False),
                            discriminator=Discriminator(channels=(4,), norm="none"))
TX = {"generator": optax.adam(1e-3, b1=0.5), "discriminator": optax.adam(1e-3, b1=0.5)}


def initial(task: GAN, batch: Any = BATCH) -> Any:
    return jax.jit(lambda: task.init(KEY, batch, TX))()


def stepped(task: GAN, batch: Any = BATCH) -> Any:
    """(state, state after a step, metrics)."""
    state = initial(task, batch)
    return state, *jax.jit(lambda s: task.step(s, batch, TX))(state)


@pytest.fixture
def float64() -> Iterator[None]:
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def test_losses_against_numpy() -> None:
    x, g = np.array([-3., 0.2, 4.]), np.array([1.5, -0.3, -7.])
    d = 1 / (1 + np.exp(-g))
    for name, real_and_made, made in (
            ("non_saturating", np.log1p(np.exp(-x)) - np.log(1 - d), -np.log(d)),
            ("least_squares", 0.5 * (x - 1) ** 2 + 0.5 * g ** 2, 0.5 * (g - 1) ** 2),
            ("hinge", np.maximum(0, 1 - x) + np.maximum(0, 1 + g), -g),
            ("wasserstein", g - x, -g)):
        objective: Any = name
        np.testing.assert_allclose(discriminator_losses(objective, jnp.asarray(x), jnp.asarray(g)),
                                   real_and_made, rtol=1e-5)
        np.testing.assert_allclose(generator_losses(objective, jnp.asarray(g)), made, rtol=1e-5)


def test_the_gradient_penalty_is_that_of_finite_differences(float64: None) -> None:
    """The slope in every pixel, and the penalty's own gradient along a direction of parameters."""
    task = dataclasses.replace(PLAIN, gradient_penalty=10.)
    batch = {**BATCH, "image": BATCH["image"].astype(jnp.float64)}
    state = initial(task, batch)
    params, mutable = state.params, state.mutable
    params = jax.tree.map(lambda x: 20. * x, params)  # slopes of the size of one
    image = np.asarray(batch["image"])

    @jax.jit
    def score(x: Any) -> Any:
        return task.discriminator.apply({"params": params["discriminator"]}, x, None, False)

    squares = np.zeros(6)
    for i, j in np.ndindex(8, 8):
        step = np.zeros((8, 8, 1))
        step[i, j] = 1e-5
        squares += np.asarray((score(image + step) - score(image - step)) / 2e-5) ** 2
    slope = jax.jit(lambda: task.slope(params, mutable, batch["image"], None))()
    np.testing.assert_allclose(slope, np.sqrt(squares), rtol=1e-6)

    @jax.jit
    def loss(own: Any) -> Any:
        mean, _, metrics = task.discriminator_loss({**params, "discriminator": own}, mutable, batch,
                                                   KEY)
        return mean.value(), metrics["gradient_penalty"]

    own = params["discriminator"]
    direction = jax.tree.map(lambda x: jnp.asarray(np.random.default_rng(0).normal(size=x.shape)),
                             own)
    found = jax.jit(jax.grad(lambda t: loss(jax.tree.map(lambda a, b: a + t * b, own, direction))[
        0]))(0.)
    ahead, behind = (loss(jax.tree.map(lambda a, b, t=t: a + t * b, own, direction))[0]
                     for t in (1e-6, -1e-6))
    np.testing.assert_allclose(found, (ahead - behind) / 2e-6, rtol=1e-5)
    without = dataclasses.replace(task, gradient_penalty=None)
    plain, _, _ = jax.jit(lambda: without.discriminator_loss(params, mutable, batch, KEY))()
    total, penalty = loss(own)
    np.testing.assert_allclose(total, plain.value() + 10 * penalty.value(), rtol=1e-9)


def test_spectral_normalisation_divides_by_the_largest_singular_value() -> None:
    w = jax.random.normal(KEY, (3, 3, 4, 6))
    u = jnp.ones(6)
    for _ in range(100):
        bar, u = spectral(w, u)
    singular = np.linalg.svd(np.asarray(w).reshape(-1, 6), compute_uv=False)
    np.testing.assert_allclose(bar, w / singular[0], rtol=1e-4, atol=1e-6)
    # Each update of the discriminator is a step of it; evaluation is none.
    before, after, _ = stepped(TASK)
    names = {"conv1_u", "conv2_u", "head_u"}
    stats = [s.mutable["discriminator"]["batch_stats"] for s in (before, after)]
    assert stats[0].keys() == stats[1].keys() == names
    assert all((stats[0][n] != stats[1][n]).any() for n in names if stats[0][n].size > 1)


def test_the_generator_meets_the_newer_discriminator_and_each_has_its_gradient() -> None:
    before, after, metrics = stepped(PLAIN)
    key = jax.random.fold_in(before.key, before.step)
    mean, _, _ = jax.jit(lambda: PLAIN.discriminator_loss(
        before.params, before.mutable, BATCH, jax.random.fold_in(key, 0)))()
    chex.assert_trees_all_close(mean, metrics["discriminator_loss"], rtol=1e-5)
    halfway = {**before.params, "discriminator": after.params["discriminator"]}
    mean, _, _ = jax.jit(lambda: PLAIN.generator_loss(halfway, before.mutable, BATCH,
                                                      jax.random.fold_in(key, 1)))()
    chex.assert_trees_all_close(mean, metrics["generator_loss"], rtol=1e-5)
    assert after.step == 1 and after.seen == 6
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, after.params)
    assert all(jax.tree.leaves(moved))


def test_what_is_masked_changes_nothing() -> None:
    bad = {**BATCH, "image": BATCH["image"].at[5].set(jnp.nan)}
    for task in (PLAIN, dataclasses.replace(PLAIN, objective="wasserstein", gradient_penalty=10.)):
        _, good, found = stepped(task)
        _, other, same = stepped(task, bad)
        chex.assert_trees_all_equal(good, other)
        chex.assert_trees_all_equal(found, same)
        chex.assert_tree_all_finite((good.params, found))


def test_critic_steps_take_parts_of_the_batch_and_an_average_follows() -> None:
    task = dataclasses.replace(PLAIN, critic_steps=3, ema=0.9)
    before, after, _ = stepped(task)
    assert int(after.opt_state["discriminator"][0].count) == 3
    assert int(after.opt_state["generator"][0].count) == 1
    decay = 0.1  # (1 + 0) / (10 + 0) is less than 0.9
    chex.assert_trees_all_close(after.ema, jax.tree.map(
        lambda a, b: decay * a + (1 - decay) * b, before.params["generator"],
        after.params["generator"]), rtol=1e-5)
    drawn = jax.jit(lambda s: task.sample(s, KEY, 3))(dataclasses.replace(
        after, params={"generator": None, "discriminator": None}))  # of the average alone
    chex.assert_shape(drawn, (3, 8, 8, 1))
    with pytest.raises(UserError, match=r"task.critic_steps=4 does not divide the batch of 6"):
        stepped(dataclasses.replace(task, critic_steps=4))


def test_the_schedule_of_a_critic_ends_with_the_run() -> None:
    rate = Linear(peak=1., end=0.)
    experiment = Experiment(task=dataclasses.replace(PLAIN, critic_steps=3), data=Digits(),
                            optimizer=dict.fromkeys(TX, SGD(learning_rate=rate)), steps=10,
                            batch_size=6)
    for name, updates in (("generator", 10), ("discriminator", 30)):
        tx = experiment.transformations()[name]

        def moved(state: Any, _: Any, tx: Any = tx) -> tuple[Any, Any]:
            update, state = tx.update(jnp.ones(()), state, jnp.ones(()))
            return state, -update

        _, rates = jax.lax.scan(moved, tx.init(jnp.ones(())), length=updates)
        np.testing.assert_allclose(rates, 1 - np.arange(updates) / updates, rtol=1e-5)


def test_conditional_networks_are_told_the_class() -> None:
    task = GAN(generator=Generator(size=8, channels=(6,), batch_norm=False, classes=3),
               discriminator=Discriminator(channels=(4,), classes=3), noise=5, conditional=True)
    _, state, _ = stepped(task)
    epsilon = jnp.ones((3, 5))
    made = jax.jit(task.images)(state, epsilon, jnp.arange(3))
    assert (made[0] != made[1]).any() and (made[1] != made[2]).any()
    other = {**BATCH, "label": (BATCH["label"] + 1) % 3}
    evaluate = jax.jit(task.evaluate)
    assert evaluate(state, BATCH)["real_score"].total != evaluate(state, other)["real_score"].total
    np.testing.assert_array_equal(task.turns(4), [0, 1, 2, 0])
    assert config.from_json(config.to_json(task)) == task


@pytest.mark.parametrize(("tx", "changes", "message"), [
    (TX["generator"], {}, r"optimizer: GAN needs two by name, .*; found one"),
    ({"generator": TX["generator"]}, {}, r"found 'generator'"),
    (TX, {"generator": Generator(size=4, channels=(4,))},
     r"task.generator: makes images \(4, 4, 1\), and the data has \(8, 8, 1\)"),
    (TX, {"generator": Generator(size=6, channels=(4, 4))}, r"size=6 cannot be halved 2 times")])
def test_mistakes(tx: Any, changes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: dataclasses.replace(TASK, **changes).init(KEY, BATCH, tx))


# The core.

FILE = '''
from jaxdl.data.digits import Digits
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Experiment, Mesh
from jaxdl.generative import Samples
from jaxdl.models.dcgan import Discriminator, Generator
from jaxdl.optimizer import Adam, Constant
from jaxdl.tasks.gan import GAN


def config():
    return Experiment(
        task=GAN(generator=Generator(size=8, channels=(4,)),
                 discriminator=Discriminator(channels=(4,)), noise=4, ema=0.9),
        data=Digits(size=8, channels=1, mean=(0.5,), std=(0.5,)),
        optimizer={"generator": Adam(learning_rate=Constant(peak=1e-3), b1=0.5),
                   "discriminator": Adam(learning_rate=Constant(peak=1e-3), b1=0.5)},
        evals={"test": Evaluate(split="test", every=8), "samples": Samples(every=8, count=8)},
        steps=8, batch_size=16, log_every=2, save_every=4, mesh=Mesh(data=1))
'''


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    (tmp_path / "tiny_gan.py").write_text(FILE)
    return f"--experiment={tmp_path / 'tiny_gan.py'}"


def losses(folder: Path) -> list[tuple[float, float]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(x["train/generator_loss"], x["train/discriminator_loss"]) for x in lines
            if "train/generator_loss" in x]


def test_it_resumes_bit_exactly(experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["verify-resume", experiment, "--steps=6"]) == 0
    assert "bit" in capsys.readouterr().out


def test_sixteen_seeds_are_one_program(experiment: str, tmp_path: Path,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, Program_compile = [], Program.compile

    def compiling(self: Program) -> Any:
        compiled.append(len(self.trials))
        return Program_compile(self)

    monkeypatch.setattr(Program, "compile", compiling)
    sweep, alone = tmp_path / "sweep", tmp_path / "alone"
    assert cli.main(["sweep", experiment, f"--workdir={sweep}", "--executor=vmap",
                     "--over=seed=0:16", "--metric=test/generator_loss", "--mode=min"]) == 0
    assert set(compiled) == {16}
    assert cli.main([experiment, f"--workdir={alone}", "--seed=3"]) == 0
    np.testing.assert_allclose(losses(sweep / "trials/0003"), losses(alone), rtol=1e-3)
    assert len(list((sweep / "trials").glob("*/samples/samples_0000008.png"))) == 16


def test_eight_devices_compute_what_one_does(experiment: str, tmp_path: Path) -> None:
    one, eight = tmp_path / "one", tmp_path / "eight"
    for folder, devices in ((one, 1), (eight, 8)):
        assert cli.main([experiment, f"--workdir={folder}", f"--mesh.data={devices}",
                         "--batch_size=16"]) == 0
    np.testing.assert_allclose(losses(one), losses(eight), rtol=1e-3)


def test_no_line_of_the_core_knows_of_generative_tasks() -> None:
    from tests.test_core import CORE

    words = re.compile(r"\b(gan|vae|generator network|discriminator|diffusion|denois\w*|sampler)\b",
                       re.IGNORECASE)
    for name in CORE:
        found = words.search((ROOT / "jaxdl" / f"{name}.py").read_text())
        assert found is None, f"{name}: {found}"
