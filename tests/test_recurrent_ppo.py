"""PPO with a network that remembers: what is carried from step to step, and what that is for."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import cli, trajectories
from jaxdl.envs.t_maze import TMaze
from jaxdl.errors import UserError
from jaxdl.models.actor_critic import ActorCritic, RecurrentActorCritic
from jaxdl.tasks.ppo import PPO, Played
from jaxdl.tasks.reinforce import Reinforce
from tests.promises import one_program, resumes

KEY = jax.random.key(0)
BATCH = {"index": jnp.arange(4), "mask": jnp.ones(4)}
MODEL = RecurrentActorCritic(outputs=3, widths=(4,), width=5, cell="lstm", layers=2)
# Some episodes end within the horizon of 8, others last longer.
TASK = PPO(model=MODEL, env=TMaze(length=2, limit=11), horizon=8, epochs=2, minibatches=2)
TX = optax.adam(1e-2)


@pytest.fixture(scope="module")
def state() -> Any:
    """With larger parameters than at first: what is remembered then counts. It has played once, so
    that its environments are in the middle of their episodes."""
    fresh = jax.jit(lambda: TASK.init(KEY, BATCH, TX))()
    large = dataclasses.replace(fresh, params=jax.tree.map(
        lambda x: x + 0.7 * jax.random.normal(KEY, x.shape), fresh.params))
    return jax.jit(TASK.play)(large, KEY)[0]


def test_a_sequence_is_its_steps_one_by_one(state: Any) -> None:
    """And an episode knows nothing of the one before it."""
    observation = jax.random.normal(KEY, (3, 6, 4))
    fresh = jnp.zeros((3, 6), bool).at[0, 3].set(True).at[1, 0].set(True)
    before = jax.tree.map(lambda x: jax.random.normal(KEY, (3, *x.shape[1:])), state.carry)

    @jax.jit
    def call(observation: Any, carry: Any, fresh: Any) -> Any:
        return MODEL.apply({"params": state.params}, observation, False, carry, fresh)

    said, value, after = call(observation, before, fresh)
    carry = before
    for i in range(6):
        one, worth, carry = jax.jit(TASK.go_on)(state.params, observation[:, i], carry,
                                                fresh[:, i])
        np.testing.assert_allclose(one, said[:, i], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(worth, value[:, i], rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), carry, after)

    alone, _, _ = call(observation[:, 3:], MODEL.start(3), fresh[:, 3:])
    np.testing.assert_allclose(alone[0], said[0, 3:], rtol=1e-5, atol=1e-6)
    assert abs(alone[1] - said[1, 3:]).max() > 1e-3
    other, _, _ = call(observation, jax.tree.map(lambda x: x + 1, before), fresh)
    changed = np.asarray(abs(other - said).max(-1) > 1e-6)
    assert changed.tolist() == [[True] * 3 + [False] * 3, [False] * 6, [True] * 6]


def test_what_was_played_is_said_again(state: Any) -> None:
    """Led through its stored sequences again, the network says what it said when it acted: the
    ratio is one before anything is learned."""
    _, steps, _ = jax.jit(TASK.play)(state, jax.random.key(1))
    assert steps.fresh[1:].any() and not steps.fresh[0].all()
    assert any(x.any() for x in jax.tree.leaves(state.carry))
    rows = TASK.rows(steps)
    said, value = jax.jit(TASK.again)(state.params, rows.observation, state.carry, rows.fresh)
    np.testing.assert_allclose(TASK.policy.log_probability(said, rows.action),
                               rows.log_probability, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value, rows.value, rtol=1e-5, atol=1e-6)
    # What follows a step is worth what the next one is, unless that is of another episode.
    following, later = np.asarray(steps.following[:-1]), np.asarray(steps.value[1:])
    same = ~np.asarray(steps.ended[:-1])
    np.testing.assert_array_equal(same, ~np.asarray(steps.fresh[1:]))
    np.testing.assert_allclose(following[same], later[same], rtol=1e-5, atol=1e-6)

    advantage = jnp.zeros_like(rows.value)
    part = Played(rows.observation, rows.action, rows.log_probability, rows.value, advantage,
                  rows.fresh, state.carry)
    loss = jax.jit(TASK.loss)
    found = loss(state.params, part)[1]
    assert abs(found["kl"]) < 1e-6 and found["clipped"] == 0
    forgotten = loss(state.params, part._replace(carry=jax.tree.map(jnp.zeros_like, part.carry)))[1]
    mixed = loss(state.params, part._replace(fresh=jnp.zeros_like(rows.fresh)))[1]
    assert forgotten["kl"] > 1e-5 and mixed["kl"] > 1e-5
    once = dataclasses.replace(TASK, epochs=1, minibatches=1)
    metrics = jax.jit(lambda s: once.step(s, BATCH, TX))(state)[1]
    assert abs(metrics["kl"]) < 1e-6 and metrics["clipped"] == 0


def test_what_is_carried_goes_on(state: Any) -> None:
    """From iteration to iteration, and from call to call of `act`."""
    go_on, play = jax.jit(TASK.go_on), jax.jit(TASK.play)
    after, first, _ = play(state, KEY)
    _, second, _ = play(after, jax.random.key(1))
    carry = state.carry
    for t in range(16):
        seen, fresh, action, logs = (x[t % 8] for x in (first, second)[t // 8][:4])
        said, _, carry = go_on(state.params, seen, carry, fresh)
        np.testing.assert_allclose(TASK.policy.log_probability(said, action), logs, rtol=1e-4,
                                   atol=1e-5)
    said, _, carry = go_on(state.params, first.observation[0], state.carry)
    action, carried = jax.jit(TASK.act)(state, first.observation[0], None, state.carry)
    np.testing.assert_array_equal(action, said.argmax(-1))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), carry, carried)


def test_its_trajectories_are_played_with_what_is_carried() -> None:
    fresh = jax.jit(lambda: TASK.init(KEY, BATCH, TX))()
    params = jax.tree.map(lambda x: x + 2 * jax.random.normal(jax.random.key(5), x.shape),
                          fresh.params)
    other = dataclasses.replace(fresh, params=params)
    found = trajectories.played(TASK, other, count=2)
    first = found["episode"] == 0
    seen = jnp.asarray(found["observation"][first])[None]
    going_on = jnp.zeros(seen.shape[:2], bool)
    said, _ = jax.jit(TASK.again)(params, seen, MODEL.start(1), going_on)
    np.testing.assert_array_equal(said[0].argmax(-1), found["action"][first])
    assert len(set(found["action"].tolist())) > 1


@pytest.mark.parametrize("task", [TASK, Reinforce(model=MODEL, env=TMaze(length=2), horizon=8)])
def test_it_updates_as_often_as_it_says(task: Any, state: Any) -> None:
    after, metrics = jax.jit(lambda s: task.step(s, BATCH, TX))(state)
    updates = task.updates_per_step("") if hasattr(task, "updates_per_step") else 1
    assert int(after.opt_state[0].count) == updates and np.isfinite(metrics["loss"])
    # All parameters are learned, those through which only what is carried goes, too.
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (state.params, after.params)),
                                              strict=True))


def test_its_minibatches_are_of_environments() -> None:
    wrong = dataclasses.replace(TASK, minibatches=8)
    with pytest.raises(UserError, match=r"task\.minibatches=8 does not divide batch_size = 4"):
        jax.eval_shape(lambda: wrong.init(KEY, BATCH, TX))
    plain = dataclasses.replace(wrong, model=ActorCritic(outputs=3, widths=()))
    assert jax.eval_shape(lambda: plain.init(KEY, BATCH, TX)).carry == ()


FILE = '''
from jaxdl.data.nothing import Nothing
from jaxdl.envs.t_maze import TMaze
from jaxdl.episodes import Episodes
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.actor_critic import ActorCritic, RecurrentActorCritic
from jaxdl.optimizer import Adam, Linear
from jaxdl.tasks.ppo import PPO

def config():
    return Experiment(
        task=PPO(model=MODEL, env=TMaze(length=5), horizon=32),
        data=Nothing(), optimizer=Adam(learning_rate=Linear(peak=5e-3, end=0.1), clip=0.5),
        evals={"test": Episodes(every=50, count=100, limit=24)},
        steps=50, batch_size=16, log_every=2, save_every=5, mesh=Mesh(data=1))
'''
RECURRENT = "RecurrentActorCritic(outputs=3, widths=(16,), width=16)"
PLAIN = "ActorCritic(outputs=3, widths=(16,))"


def written(folder: Path, model: str) -> str:
    (folder / "maze.py").write_text(FILE.replace("MODEL", model))
    return f"--experiment={folder / 'maze.py'}"


@pytest.mark.parametrize(("model", "solves"), [(RECURRENT, True), (PLAIN, False)])
def test_only_who_remembers_finds_through_a_t_maze(
        model: str, solves: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Who does not is right every second time: 1 - 0.1 * 6 / 5, less 2 as often as it is wrong."""
    assert cli.main([written(tmp_path, model), f"--workdir={tmp_path / 'run'}"]) == 0
    found = float(capfd.readouterr().out.rsplit("test/return", 1)[1].split()[0])
    if solves:
        assert found == pytest.approx(0.88, abs=1e-3)
    else:
        assert found < 0.3


def test_it_resumes_bit_exactly(tmp_path: Path) -> None:
    resumes(written(tmp_path, RECURRENT), tmp_path, 8)


def test_seeds_are_one_program(tmp_path: Path, programs: list[int]) -> None:
    one_program(written(tmp_path, RECURRENT), tmp_path, programs, "--steps=6",
                relative=1e-3, absolute=1e-5)
