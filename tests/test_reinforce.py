"""REINFORCE: its loss and gradient against NumPy, and what it learns."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import cli, config
from jaxdl.envs.grid_world import GridWorld
from jaxdl.errors import UserError
from jaxdl.models.actor_critic import ActorCritic
from jaxdl.tasks.reinforce import Reinforce
from tests.promises import one_program, resumes

KEY = jax.random.key(0)
BATCH = {"index": jnp.arange(4), "mask": jnp.ones(4)}
TASK = Reinforce(model=ActorCritic(outputs=4, widths=()), env=GridWorld(limit=6), horizon=16,
                 entropy_weight=0.01)


def softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x) / np.exp(x).sum(-1, keepdims=True)


def test_a_step_against_numpy() -> None:
    """One step of plain gradient descent, out of what was played: the model is linear, so that
    its gradient can be written down."""
    tx = optax.sgd(1.)
    state = jax.jit(lambda: TASK.init(jax.random.key(2), BATCH, tx))()
    random = np.random.default_rng(0)
    state = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.asarray(random.normal(size=x.shape), jnp.float32)
        if ".params" in jax.tree_util.keystr(path) else x, state)
    played = jax.jit(TASK.play)(state, jax.random.fold_in(state.key, 0))[1]
    after, metrics = jax.jit(lambda s: TASK.step(s, BATCH, tx))(state)
    t, n = played.reward.shape
    cut = np.asarray(played.ended & ~played.terminated)
    assert cut.any() and played.terminated.any()

    params = jax.tree.map(lambda x: np.asarray(x, np.float64), state.params)
    following = np.asarray(played.following, np.float64)
    returns = np.zeros((t, n))
    for j in range(n):
        rest = following[-1, j]
        for i in reversed(range(t)):
            if played.terminated[i, j]:
                rest = 0.
            elif cut[i, j]:
                rest = following[i, j]
            returns[i, j] = rest = played.reward[i, j] + 0.99 * rest
    x = np.asarray(played.observation, np.float64).reshape(t * n, -1)
    action, g = np.asarray(played.action).reshape(-1), returns.reshape(-1)
    p = softmax(x @ params["policy"]["kernel"] + params["policy"]["bias"])
    value = (x @ params["value"]["kernel"] + params["value"]["bias"])[:, 0]
    logs, entropy = np.log(p[range(t * n), action]), -(p * np.log(p)).sum(-1)
    parts = {"policy_loss": -((g - value) * logs).mean(), "entropy": entropy.mean(),
             "value_loss": ((value - g) ** 2).mean() / 2}
    for name, expected in parts.items():
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss"], parts["policy_loss"] + 0.5 * parts["value_loss"]
                               - 0.01 * entropy.mean(), rtol=1e-4)
    # d(-log p_a)/d logits is p - 1 at a; d(-entropy)/d logits is p (log p + entropy).
    d_said = (g - value)[:, None] * (p - np.eye(4)[action]) + 0.01 * p * (
        np.log(p) + entropy[:, None])
    d_value = 0.5 * (value - g)
    change: Any = jax.tree.map(lambda a, b: np.asarray(a - b), state.params, after.params)
    np.testing.assert_allclose(change["policy"]["kernel"], x.T @ d_said / (t * n), atol=2e-5)
    np.testing.assert_allclose(change["value"]["kernel"][:, 0], x.T @ d_value / (t * n), atol=2e-5)
    assert int(after.step) == 1 and int(after.seen) == 4


def test_mistakes() -> None:
    wrong = config.replace(TASK, {"model.outputs": 3})
    with pytest.raises(UserError, match="says 3 numbers of what to do; the actions of"):
        jax.eval_shape(lambda: wrong.init(KEY, BATCH, optax.sgd(1.)))
    with pytest.raises(UserError, match=r"Reinforce has no test data .* episodes\.Episodes"):
        TASK.evaluate(None, BATCH)  # type: ignore[arg-type]
    assert config.from_json(config.to_json(TASK)) == TASK


FILE = '''
from jaxdl.data.nothing import Nothing
from jaxdl.envs.grid_world import GridWorld
from jaxdl.episodes import Episodes
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.actor_critic import ActorCritic
from jaxdl.optimizer import Adam, Constant
from jaxdl.tasks.reinforce import Reinforce

def config():
    return Experiment(
        task=Reinforce(model=ActorCritic(outputs=4, widths=(16,)), env=GridWorld(), horizon=16,
                       entropy_weight=0.01),
        data=Nothing(), optimizer=Adam(learning_rate=Constant(peak=2e-2)),
        evals={"test": Episodes(every=200, count=20, limit=50)},
        steps=200, batch_size=16, log_every=20, save_every=5, mesh=Mesh(data=1))
'''


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    (tmp_path / "tiny_reinforce.py").write_text(FILE)
    return f"--experiment={tmp_path / 'tiny_reinforce.py'}"


def test_it_finds_the_shortest_way(experiment: str, tmp_path: Path,
                                   capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([experiment, f"--workdir={tmp_path / 'run'}"]) == 0
    assert float(capfd.readouterr().out.rsplit("test/return", 1)[1].split()[0]) == pytest.approx(
        0.95)


def test_it_resumes_bit_exactly(experiment: str, tmp_path: Path) -> None:
    resumes(experiment, tmp_path, 8)


def test_seeds_are_one_program(experiment: str, tmp_path: Path, programs: list[int]) -> None:
    one_program(experiment, tmp_path, programs, "--steps=6")
