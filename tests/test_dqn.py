"""Deep Q-learning: its loss and its memory against NumPy, and what it learns."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import cli, config, replay
from jaxdl.envs.environment import Box, Transition
from jaxdl.envs.grid_world import GridWorld
from jaxdl.errors import UserError
from jaxdl.models.actor_critic import ActorCritic
from jaxdl.models.q_network import QNetwork
from jaxdl.returns import n_step
from jaxdl.tasks.dqn import DQN
from tests.promises import one_program, resumes

KEY = jax.random.key(0)
BATCH = {"index": jnp.arange(4), "mask": jnp.ones(4)}
TASK = DQN(model=QNetwork(actions=4, widths=(16,), duelling=True), env=GridWorld(limit=20),
           memory=400, warmup=2, explored=10., sample=32, target_rate=0.1, n=2)
TX = optax.adam(1e-2)
RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("steps", [1, 3, 20])
def test_sums_of_n_rewards(steps: int) -> None:
    t, n = 7, 3
    reward, following = RANDOM.normal(size=(2, t, n))
    terminated = RANDOM.random((t, n)) < 0.2
    ended = terminated | (RANDOM.random((t, n)) < 0.2)
    total, factor, end = n_step(*map(jnp.asarray, (reward, following[..., None], terminated,
                                                   ended)), 0.9, steps)
    for i in range(t):
        for j in range(n):
            expected, k = 0., 0
            while True:
                expected += 0.9 ** k * reward[i + k, j]
                last, k = i + k, k + 1
                if ended[last, j] or k == steps or last == t - 1:
                    break
            assert total[i, j] == pytest.approx(expected, rel=1e-5)
            assert end[i, j, 0] == pytest.approx(following[last, j], rel=1e-6)
            assert factor[i, j] == pytest.approx(0 if terminated[last, j] else 0.9 ** k, rel=1e-5)


def test_a_memory_keeps_the_newest_and_draws_by_priority() -> None:
    memory = replay.empty(jnp.int32(0), 5)
    for rows in ([1, 2, 3], [4, 5, 6, 7]):
        memory = jax.jit(replay.added)(memory, jnp.array(rows))
    assert memory.rows.tolist() == [6, 7, 3, 4, 5] and int(memory.place) == 2
    priority = jnp.array([1., 0., 3., 4., 2.])
    memory = replay.rated(memory, jnp.arange(5), priority)
    rows, places, probability = jax.jit(lambda: replay.drawn(memory, KEY, 20_000))()
    np.testing.assert_allclose(np.bincount(places, minlength=5) / 20_000, priority / 10, atol=2e-3)
    np.testing.assert_array_equal(rows, memory.rows[places])
    np.testing.assert_allclose(probability, priority[places] / 10, rtol=1e-6)
    assert int(replay.added(memory, jnp.array([9])).priority[2]) == 4  # as likely as the likeliest
    half = replay.added(replay.empty(jnp.int32(0), 8), jnp.array([1, 2]))
    assert set(replay.drawn(half, KEY, 50)[1].tolist()) == {0, 1}  # never what is not there


def test_what_is_not_there_is_never_drawn_whatever_rounding_does() -> None:
    priority = jnp.concatenate([jnp.ones(1_000), jnp.zeros(24)])
    shares = jnp.array([0., 0.5, 1 - 2 ** -24, 1.])
    assert replay.found(priority, shares).tolist() == [0, 500, 999, 999]


@pytest.mark.parametrize("double", [False, True])
def test_the_loss_against_numpy(double: bool) -> None:
    task = dataclasses.replace(TASK, double=double)
    state = jax.jit(lambda: task.init(KEY, BATCH, TX))()
    target = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(KEY, x.shape), state.params)
    seen, after = RANDOM.normal(size=(2, 6, 16)).astype(np.float32)
    action = RANDOM.integers(0, 4, 6).astype(np.int32)
    reward, factor, weights = RANDOM.random((3, 6)).astype(np.float32)
    reward = 3 * reward
    rows = Transition(*map(jnp.asarray, (seen, action, reward, factor, after)))
    values = jax.jit(task.values)
    q, now, later = (np.asarray(values(p, x)) for p, x in (
        (state.params, seen), (state.params, after), (target, after)))
    best = (now if double else later).argmax(-1)
    error = reward + factor * later[range(6), best] - q[range(6), action]
    size = np.abs(error)
    expected = (weights * np.where(size < 1, size ** 2 / 2, size - 0.5)).mean()
    loss, (found, _) = jax.jit(task.loss)(state.params, target, rows, jnp.asarray(weights))
    np.testing.assert_allclose(found, error, rtol=1e-4, atol=1e-5)
    assert float(loss) == pytest.approx(expected, rel=1e-4) and (size > 1).any()
    gradient = jax.jit(jax.grad(lambda t: task.loss(state.params, t, rows, rows.reward)[0]))(target)
    assert not any(x.any() for x in jax.tree.leaves(gradient))  # Targets are no way to learn.


def test_duelling_heads_are_a_value_and_advantages() -> None:
    model = QNetwork(actions=3, widths=(), duelling=True)
    params: Any = model.init(KEY, jnp.zeros((1, 2)), True)["params"]
    x = jax.random.normal(KEY, (4, 2))
    found = model.apply({"params": params}, x, False)
    value, advantage = (x @ params[n]["kernel"] + params[n]["bias"] for n in ("value", "head"))
    np.testing.assert_allclose(found, value + advantage - advantage.mean(-1, keepdims=True),
                               rtol=1e-5, atol=1e-6)


def test_nothing_is_learned_while_it_warms_up() -> None:
    state = jax.jit(lambda: TASK.init(KEY, BATCH, TX))()
    step = jax.jit(lambda s: TASK.step(s, BATCH, TX))
    states = [state]
    for _ in range(3):
        states.append(step(states[-1])[0])
    same = [bool(all(jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), a.params,
                                                  b.params))))
            for a, b in itertools.pairwise(states)]
    assert same == [True, True, False]  # warmup=2
    assert [int((s.replay.priority > 0).sum()) for s in states] == [0, 32, 64, 96]
    assert int(states[-1].opt_state[0].count) == TASK.updates_per_step("") == 8
    epsilons = [float(step(s)[1]["epsilon"]) for s in (states[0], dataclasses.replace(
        state, step=jnp.int32(5)), dataclasses.replace(state, step=jnp.int32(30)))]
    np.testing.assert_allclose(epsilons, [1, 1 - 0.5 * 0.95, 0.05], rtol=1e-5)
    eager = dataclasses.replace(TASK, explored=0.)  # It plays at random until it learns.
    assert float(jax.jit(lambda s: eager.step(s, BATCH, TX))(states[1])[1]["epsilon"]) == 1


@pytest.mark.parametrize(("changes", "message"), [
    ({"memory": 20}, r"task.memory=20: an iteration plays batch_size \* horizon = 32 transitions"),
    ({"model": QNetwork(actions=3)}, "says 3 numbers .* the actions of task.env take 4"),
    ({"model": ActorCritic(outputs=4)}, "task.model=ActorCritic: returns 2 of 1 expected parts ")])
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: dataclasses.replace(TASK, **changes).init(KEY, BATCH, TX))


def test_real_numbers_are_no_choice() -> None:
    class Arm(GridWorld):
        def actions(self) -> Any:
            return Box(1, -1., 1.)

    with pytest.raises(UserError, match="DQN chooses one of several"):
        dataclasses.replace(TASK, env=Arm()).init(KEY, BATCH, TX)


FILE = '''
from jaxdl.data.nothing import Nothing
from jaxdl.envs.grid_world import GridWorld
from jaxdl.episodes import Episodes
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.q_network import QNetwork
from jaxdl.optimizer import Adam, Constant
from jaxdl.tasks.dqn import DQN

def config():
    return Experiment(
        task=DQN(model=QNetwork(actions=4, widths=(32,)), env=GridWorld(limit=30), memory=2_000,
                 explored=40., sample=32, target_rate=0.05, priority=0.6, n=3),
        data=Nothing(), optimizer=Adam(learning_rate=Constant(peak=3e-3)),
        evals={"test": Episodes(every=100, count=10, limit=30)},
        steps=100, batch_size=8, log_every=20, save_every=5, mesh=Mesh(data=1))
'''


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    path = tmp_path / "tiny_dqn.py"
    path.write_text(FILE)
    return f"--experiment={path}"


def test_it_finds_the_shortest_way(experiment: str, tmp_path: Path,
                                   capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([experiment, f"--workdir={tmp_path / 'run'}"]) == 0
    assert float(capfd.readouterr().out.rsplit("test/return", 1)[1].split()[0]) == pytest.approx(
        0.95)
    assert config.from_json(config.to_json(TASK)) == TASK


def test_it_resumes_bit_exactly_with_its_memory(experiment: str, tmp_path: Path) -> None:
    resumes(experiment, tmp_path, 30)


def test_seeds_are_one_program(experiment: str, tmp_path: Path, programs: list[int]) -> None:
    one_program(experiment, tmp_path, programs, "--steps=24")
