"""Evolution strategies: the estimate of the gradient, the ranks, and what they find."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import cli, config, trajectories
from jaxdl.envs.grid_world import GridWorld
from jaxdl.envs.gymnax import Gymnax
from jaxdl.errors import UserError
from jaxdl.models.mlp import MLP
from jaxdl.tasks.evolution import Evolution, gradient, noise, population, ranks
from tests.promises import one_program, resumes

KEY = jax.random.key(0)
TASK = Evolution(model=MLP(widths=(), classes=4), deviation=0.5,
                 env=GridWorld(maze=("SG", "X."), limit=9))  # to the goal, a pit or nowhere
BATCH = {"index": jnp.arange(8), "mask": jnp.ones(8)}
PARAMS = {"a": jnp.array([0.5, -1., 2.]), "b": jnp.array([[1., 0.], [0.3, -0.2]])}


@pytest.mark.parametrize("curved", [False, True])
def test_the_estimate_is_the_gradient(curved: bool) -> None:
    """Of c x - curved * (x A x) / 2 it is c - curved * A x in the mean, whatever the deviation:
    pairs do away with all even orders. Of n pairs in d dimensions each number has a variance of at
    most (|gradient|^2 + its own square) / n; five deviations are allowed."""
    random = np.random.default_rng(0)
    d, n, deviation = 7, 20_000, 0.3
    c = random.normal(size=d)
    a = random.normal(size=(d, d))
    a = curved * (a @ a.T) / d

    def score(params: Any) -> Any:
        x = jnp.concatenate([params["a"], params["b"].reshape(-1)])
        return jnp.asarray(c, jnp.float32) @ x - x @ jnp.asarray(a, jnp.float32) @ x / 2

    def estimated(key: Any) -> Any:
        drawn = noise(PARAMS, key, n)
        return gradient(drawn, jax.vmap(score)(population(PARAMS, drawn, deviation)), deviation)

    found = jax.jit(estimated)(KEY)
    x = np.concatenate([np.ravel(PARAMS[name]) for name in "ab"])
    expected = c - a @ x
    error = np.concatenate([np.ravel(found[name]) for name in "ab"]) - expected
    assert (abs(error) < 5 * np.sqrt((expected @ expected + expected ** 2) / n)).all()
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, PARAMS)


def test_ranks_against_numpy() -> None:
    score = np.random.default_rng(0).normal(size=9)
    expected = np.argsort(np.argsort(score)) / 8 - 0.5
    np.testing.assert_allclose(jax.jit(ranks)(score), expected, atol=1e-7)
    np.testing.assert_allclose(ranks(jnp.array([5., 1., 5., 7.])), np.array([1.5, 0, 1.5, 3]) / 3
                               - 0.5, atol=1e-7)
    np.testing.assert_allclose(ranks(jnp.full(6, 3.)), 0, atol=1e-7)  # nothing to learn from


def test_a_step_against_numpy() -> None:
    tx = optax.sgd(0.1)
    state = jax.jit(lambda: TASK.init(KEY, BATCH, tx))()
    after, metrics = jax.jit(lambda s: TASK.step(s, BATCH, tx))(state)
    key = jax.random.fold_in(state.key, 0)
    drawn = noise(state.params, jax.random.fold_in(key, 0), 4)
    played = jax.jit(TASK.play)(population(state.params, drawn, 0.5), jax.random.fold_in(key, 1))
    score = np.asarray(played.total, np.float64)
    assert len(set(score)) > 2
    rank = np.array([(score < s).sum() + ((score == s).sum() - 1) / 2 for s in score]) / 7 - 0.5
    expected: Any = jax.tree.map(lambda x, e: x + 0.1 * sum(
        (rank[i] - rank[4 + i]) * e[i] for i in range(4)) / (8 * 0.5), state.params, drawn)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
                 after.params, expected)
    np.testing.assert_allclose(metrics["return"].value(), score.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["highest"], score.max(), rtol=1e-5)
    assert metrics["return"].count == 8 and int(after.seen) == 8 and int(after.step) == 1


def test_each_of_a_population_plays_its_own_episode() -> None:
    """Its return and length are those of its parameters alone, played by other code."""
    state = jax.jit(lambda: TASK.init(KEY, BATCH, optax.sgd(1.)))()
    drawn = noise(state.params, KEY, 4)
    several = population(state.params, drawn, 3.)
    found = jax.jit(TASK.play)(several, KEY)
    assert len(set(np.asarray(found.length).tolist())) > 1
    for i in range(8):
        one = dataclasses.replace(state, params=jax.tree.map(lambda x, i=i: x[i], several))
        alone = trajectories.played(TASK, one, count=1)
        assert found.length[i] == len(alone["reward"])
        np.testing.assert_allclose(found.total[i], alone["reward"].sum(), rtol=1e-5)
    cut = jax.jit(dataclasses.replace(TASK, limit=3).play)(several, KEY)
    assert (cut.length <= 3).all() and (cut.length == 3).any()


def test_pairs_meet_the_same_environment() -> None:
    pytest.importorskip("gymnax", reason="pip install 'jaxdl[rl]'")
    task = Evolution(model=MLP(widths=(), classes=2), env=Gymnax(name="CartPole-v1"), limit=500)
    state = jax.jit(lambda: task.init(KEY, BATCH, optax.sgd(1.)))()
    same = jax.tree.map(lambda x: jnp.stack([x] * 8), state.params)
    length = jax.jit(task.play)(same, KEY).length
    np.testing.assert_array_equal(length[:4], length[4:])
    assert len(set(length.tolist())) > 1


@pytest.mark.parametrize(("changes", "size", "message"), [
    ({}, 5, "batch_size=5: expected an even number of episodes"),
    ({"model.classes": 3}, 4, "says 3 numbers of what to do; .* task.env take 4")])
def test_mistakes(changes: dict[str, Any], size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: config.replace(TASK, changes).init(
            KEY, {"mask": jnp.ones(size)}, optax.sgd(1.)))
    with pytest.raises(UserError, match=r"its evaluator is episodes\.Episodes"):
        TASK.evaluate(None, BATCH)  # type: ignore[arg-type]
    assert config.from_json(config.to_json(TASK)) == TASK


FILE = '''
from jaxdl.data.nothing import Nothing
from jaxdl.envs.grid_world import GridWorld
from jaxdl.episodes import Episodes
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import Adam, Constant
from jaxdl.tasks.evolution import Evolution

def config():
    return Experiment(
        task=Evolution(model=MLP(widths=(), classes=4), env=GridWorld(limit=20), deviation=0.5),
        data=Nothing(), optimizer=Adam(learning_rate=Constant(peak=0.2)),
        evals={"test": Episodes(every=40, count=5, limit=20)},
        steps=40, batch_size=32, log_every=2, save_every=5, mesh=Mesh(data=1))
'''


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    (tmp_path / "tiny_evolution.py").write_text(FILE)
    return f"--experiment={tmp_path / 'tiny_evolution.py'}"


def test_it_finds_the_shortest_way(experiment: str, tmp_path: Path,
                                   capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([experiment, f"--workdir={tmp_path / 'run'}"]) == 0
    assert float(capfd.readouterr().out.rsplit("test/return", 1)[1].split()[0]) == pytest.approx(
        0.95)


def test_it_resumes_bit_exactly(experiment: str, tmp_path: Path) -> None:
    resumes(experiment, tmp_path, 8)


def test_seeds_are_one_program(experiment: str, tmp_path: Path, programs: list[int]) -> None:
    one_program(experiment, tmp_path, programs, "--steps=6", curve="train/return")
