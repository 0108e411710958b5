"""Soft actor-critic: its densities and losses against NumPy, and what it learns."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import cli
from jaxdl.envs.environment import Box, Discrete, Step, Transition
from jaxdl.errors import UserError
from jaxdl.models.mlp import MLP
from jaxdl.models.soft_actor_critic import SoftActorCritic
from jaxdl.policies import Squashed
from jaxdl.tasks.sac import SAC
from tests.promises import one_program, resumes

KEY = jax.random.key(0)
BATCH = {"index": jnp.arange(4), "mask": jnp.ones(4)}
TX = optax.adam(1e-2)
RANDOM = np.random.default_rng(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mirror:
    """Shows a number in [-1, 1] at each of eight steps; three times its mirror image is best."""

    size: int = 1

    def actions(self) -> Box | Discrete:
        return Box(self.size, -3., 3.)

    def shape(self) -> tuple[int, ...]:
        return (self.size,)

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        number = jax.random.uniform(key, (self.size,), minval=-1)
        return (number, jnp.int32(0)), number

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Step]:
        number, time = state
        reward = -jnp.square(action + 3 * number).mean()
        after = jax.random.uniform(key, (self.size,), minval=-1)
        return (after, time + 1), Step(after, reward, jnp.array(False), time + 1 >= 8)


TASK = SAC(model=SoftActorCritic(outputs=4, widths=(16,)), env=Mirror(size=2), memory=400,
           warmup=2, sample=16, horizon=4, updates=3, n=2)


def test_the_density_of_squashed_actions() -> None:
    policy = Squashed(Box(2, -1., 3.))
    said = jnp.array([0.3, -2., 0.1, 0.4])
    keys = jax.random.split(KEY, 4_000)
    action, logs = jax.jit(jax.vmap(lambda key: policy.sampled(said, key)))(keys)
    u = np.arctanh(np.asarray(action, np.float64))
    deviation = np.exp([0.1, 0.4])
    expected = (-0.5 * ((u - [0.3, -2.]) / deviation) ** 2 - np.log(deviation)
                - 0.5 * np.log(2 * np.pi) - np.log(1 - np.tanh(u) ** 2)).sum(-1)
    usual = np.abs(u).max(-1) < 3  # Of others the inverse is inexact.
    assert usual.sum() > 2_000
    np.testing.assert_allclose(logs[usual], expected[usual], atol=2e-3)
    # A density: the mean of 1 / p over what is drawn is the volume of what is drawn from.
    middle = np.abs(np.asarray(action)).max(-1) < 0.9
    assert (middle / np.exp(logs)).mean() == pytest.approx(1.8 ** 2, rel=0.1)
    np.testing.assert_allclose(policy.mode(said), np.tanh([0.3, -2.]), rtol=1e-6)
    np.testing.assert_allclose(policy.bounded(jnp.array([0., 1.])), [1, 3])
    far = policy.sampled(jnp.array([30., 30., -5., -5.]), KEY)  # tanh(30) rounds to 1.
    assert np.isfinite(far[1])


def test_the_losses_against_numpy() -> None:
    state = jax.jit(lambda: TASK.init(KEY, BATCH, TX))()
    target = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(KEY, x.shape), state.target)
    seen, after = RANDOM.normal(size=(2, 6, 2)).astype(np.float32)
    action = RANDOM.uniform(-1, 1, (6, 2)).astype(np.float32)
    reward, factor = RANDOM.random((2, 6)).astype(np.float32)
    rows = Transition(*map(jnp.asarray, (seen, action, reward, factor, after)))
    params = {**state.params, "temperature": jnp.log(0.7)}
    model = params["model"]
    sampled, values = jax.jit(TASK.sampled), jax.jit(TASK.values)
    next_action, next_logs = sampled(model, after, jax.random.fold_in(KEY, 0))
    own_action, own_logs = sampled(model, seen, jax.random.fold_in(KEY, 1))
    later = np.minimum(*np.asarray(values(target, after, next_action))) - 0.7 * next_logs
    errors = np.asarray(values(model, seen, action)) - (reward + factor * later)
    value = np.minimum(*np.asarray(values(model, seen, own_action)))
    loss, found = jax.jit(TASK.loss)(params, target, rows, KEY)
    assert errors.shape == (2, 6)
    assert float(found["value_loss"]) == pytest.approx(
        float((errors ** 2).sum(0).mean() / 2), rel=1e-4)
    assert float(found["policy_loss"]) == pytest.approx(float((0.7 * own_logs - value).mean()),
                                                       rel=1e-4)
    temperature = float((-0.7 * (own_logs - 2)).mean())  # The entropy to have is -2, its size.
    assert float(loss) == pytest.approx(float(found["value_loss"] + found["policy_loss"])
                                        + temperature, rel=1e-4)
    gradient = jax.jit(jax.grad(lambda p, t: TASK.loss(p, t, rows, KEY)[0], (0, 1)))(params, target)
    assert float(gradient[0]["temperature"]) == pytest.approx(temperature, rel=1e-4)
    assert not any(x.any() for x in jax.tree.leaves(gradient[1]))
    # The values learn from their errors alone, the policy from its own loss alone.
    errors_alone = jax.jit(jax.grad(lambda p: TASK.loss(p, target, rows, KEY)[1]["value_loss"]))(
        params)["model"]
    policy_alone = jax.jit(jax.grad(lambda p: TASK.loss(p, target, rows, KEY)[1]["policy_loss"]))(
        params)["model"]
    assert not any(x.any() for x in jax.tree.leaves((errors_alone["actor"],
                                                     policy_alone["critic"])))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6),
                 {"actor": policy_alone["actor"], "critic": errors_alone["critic"]},
                 gradient[0]["model"])


def test_critics_differ() -> None:
    params = jax.jit(lambda: TASK.init(KEY, BATCH, TX))().params["model"]
    values = TASK.values(params, jnp.ones((3, 2)), jnp.ones((3, 2)))
    assert values.shape == (2, 3) and not np.allclose(values[0], values[1])


class Choice(Mirror):
    """Chooses one of three."""

    def actions(self) -> Discrete:
        return Discrete(3)


@pytest.mark.parametrize(("changes", "message"), [
    ({"memory": 10}, r"task.memory=10: an iteration plays batch_size \* horizon = 16 transitions"),
    ({"env": Choice()}, "its actions are one of several; SAC takes real numbers"),
    ({"model": SoftActorCritic(outputs=3)}, r"says 3 numbers .* take 4 \(outputs\)"),
    ({"model": MLP(classes=4)}, "task.model=MLP: has no methods policy and values")])
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: dataclasses.replace(TASK, **changes).init(KEY, BATCH, TX))


FILE = f'''
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.data.nothing import Nothing
from jaxdl.episodes import Episodes
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.soft_actor_critic import SoftActorCritic
from jaxdl.optimizer import Adam, Constant
from jaxdl.envs.environment import Box, Discrete, Step
from jaxdl.tasks.sac import SAC

{inspect.getsource(Mirror)}

def config():
    return Experiment(
        task=SAC(model=SoftActorCritic(outputs=2, widths=(32,)), env=Mirror(), memory=1_000,
                 warmup=5, sample=64, updates=16, target_rate=0.02, temperature=0.3, discount=0.9),
        data=Nothing(), optimizer=Adam(learning_rate=Constant(peak=3e-3)),
        evals={{"test": Episodes(every=60, count=50, limit=8)}},
        steps=60, batch_size=8, log_every=20, save_every=5, mesh=Mesh(data=1))
'''


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    path = tmp_path / "tiny_sac.py"
    path.write_text(FILE)
    return f"--experiment={path}"


def test_it_learns_what_to_do(experiment: str, tmp_path: Path,
                              capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([experiment, f"--workdir={tmp_path / 'run'}"]) == 0
    found = float(capfd.readouterr().out.rsplit("test/return", 1)[1].split()[0])
    assert found > -2  # Zero in the middle has -24, one at random -48.


def test_it_resumes_bit_exactly(experiment: str, tmp_path: Path) -> None:
    resumes(experiment, tmp_path, 20)


def test_seeds_are_one_program(experiment: str, tmp_path: Path, programs: list[int]) -> None:
    one_program(experiment, tmp_path, programs, "--steps=7", curve="train/value_loss")
