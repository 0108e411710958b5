"""Environments: what a move does, and episodes that follow each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import config
from jaxdl.envs.brax import Brax
from jaxdl.envs.environment import Box, Discrete, advance, begin
from jaxdl.envs.grid_world import GridWorld
from jaxdl.envs.gymnax import Gymnax
from jaxdl.envs.t_maze import TMaze
from jaxdl.errors import UserError
from jaxdl.policies import Categorical, Gaussian, policy

KEY = jax.random.key(0)
UP, RIGHT, DOWN, LEFT = range(4)
GRID = GridWorld(maze=("S.G", ".#X"), limit=4)


def test_moves_in_a_grid() -> None:
    move = jax.jit(lambda state, action: GRID.step(KEY, state, action))
    start, observation = GRID.reset(KEY)
    np.testing.assert_array_equal(observation, [1, 0, 0, 0, 0, 0])
    for action, at in ((UP, [0, 0]), (LEFT, [0, 0]), (RIGHT, [0, 1]), (DOWN, [1, 0])):
        state, step = move(start, action)
        np.testing.assert_array_equal(state.at, at)
        assert step.reward == pytest.approx(-0.01) and not step.terminated
    middle = move(start, RIGHT)[0]
    np.testing.assert_array_equal(move(middle, DOWN)[0].at, [0, 1])  # a wall
    goal, step = move(middle, RIGHT)
    assert step.reward == pytest.approx(0.99) and step.terminated and not step.truncated
    np.testing.assert_array_equal(step.observation, [0, 0, 1, 0, 0, 0])
    _, step = move(goal, DOWN)
    assert step.reward == pytest.approx(-1.01) and step.terminated
    state = start
    for i in range(4):
        state, step = move(state, UP)
        assert bool(step.truncated) == (i == 3) and not step.terminated


def test_an_episode_is_followed_by_another() -> None:
    go = jax.jit(lambda playing, action: advance(GRID, jax.random.split(KEY, 2), playing, action))
    playing = begin(GRID, jax.random.split(KEY, 2))
    playing, _, ended = go(playing, jnp.array([RIGHT, UP]))
    assert not ended.ended.any()
    playing, step, ended = go(playing, jnp.array([RIGHT, UP]))
    assert ended.ended.tolist() == [True, False]
    np.testing.assert_allclose(ended.total, [0.98, -0.02], rtol=1e-6)
    assert ended.length.tolist() == [2, 2]
    # The answer is of the old episode, what is seen next is of the new one.
    assert step.observation[0].argmax() == 2 and playing.observation[0].argmax() == 0
    assert playing.length.tolist() == [0, 2] and playing.total[0] == 0
    assert playing.states.time.tolist() == [0, 2]


@pytest.mark.parametrize(("maze", "message"), [
    (("S.", "G"), "rows of one length"), (("S?G",), r"maze: '\?' is no field"),
    (("S..",), "there is no 'G'")])
def test_mazes_that_are_none(maze: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ = GridWorld(maze=maze).shape()


def test_the_sign_of_a_t_maze_is_seen_at_its_beginning_alone() -> None:
    env = TMaze(length=3)
    left, ahead, right = range(3)
    move = jax.jit(lambda state, action: env.step(KEY, state, action))
    starts = jax.vmap(env.reset)(jax.random.split(KEY, 20))
    assert {int(x.argmax()) for x in starts[1]} == {0, 1}
    for right_is_goal in (0, 1):
        state = jax.tree.map(lambda x, i=right_is_goal: x[starts[0].right.tolist().index(i)],
                             starts[0])
        seen = [int(env.observed(state.at, state.right).argmax())]
        for action in (ahead, left, ahead, right, ahead):  # Left and right lead to walls.
            state, step = move(state, action)
            seen.append(int(step.observation.argmax()))
            assert float(step.reward) == pytest.approx(-0.1 / 3) and not step.terminated
        assert seen == [right_is_goal, 2, 2, 2, 2, 3]
        assert int(move(state, ahead)[0].at) == 3
        for action, goal in ((left, not right_is_goal), (right, right_is_goal)):
            _, step = move(state, action)
            assert step.terminated and not step.truncated
            assert float(step.reward) == pytest.approx((1 if goal else -1) - 0.1 / 3)
    for limit, moves in ((None, 16), (2, 2)):
        state, count = env.reset(KEY)[0], 0
        cut = TMaze(length=3, limit=limit)
        while True:
            state, step = cut.step(KEY, state, jnp.int32(left))
            count += 1
            if step.truncated:
                break
        assert count == moves and not step.terminated


def test_policies_against_numpy() -> None:
    said = jnp.clip(jax.random.normal(KEY, (5, 4)), -2, 2)
    found = policy(Discrete(4))
    assert isinstance(found, Categorical) and found.outputs == 4
    p = np.exp(said) / np.exp(said).sum(-1, keepdims=True)
    action = jnp.array([0, 3, 1, 2, 2])
    np.testing.assert_allclose(found.log_probability(said, action), np.log(p[range(5), action]),
                               rtol=1e-5)
    np.testing.assert_allclose(found.entropy(said), -(p * np.log(p)).sum(-1), rtol=1e-5)
    drawn = jax.vmap(lambda k: found.sample(said[0], k))(jax.random.split(KEY, 4_000))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 4_000, p[0], atol=0.03)

    normal = policy(Box(2, -2., 6.))
    assert isinstance(normal, Gaussian) and normal.outputs == 4
    value = jax.random.normal(jax.random.key(1), (5, 2))
    mean, deviation = said[:, :2], np.exp(said[:, 2:])
    density = np.exp(-((value - mean) / deviation) ** 2 / 2) / deviation / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(normal.log_probability(said, value), np.log(density).sum(-1),
                               rtol=1e-4)
    np.testing.assert_allclose(normal.entropy(said), np.log(
        deviation * np.sqrt(2 * np.pi * np.e)).sum(-1), rtol=1e-5)
    drawn = jax.vmap(lambda k: normal.sample(said[0], k))(jax.random.split(KEY, 4_000))
    np.testing.assert_allclose(drawn.mean(0), mean[0], atol=0.1)
    np.testing.assert_allclose(drawn.std(0), deviation[0], rtol=0.05)
    np.testing.assert_allclose(normal.bounded(jnp.array([-3., 0.5])), [-2., 4.])


def test_gymnax() -> None:
    pytest.importorskip("gymnax", reason="pip install 'jaxdl[rl]'")
    env = Gymnax(name="CartPole-v1")
    assert (env.actions(), env.shape()) == (Discrete(2), (4,))
    assert Gymnax(name="Pendulum-v1").actions() == Box(1, -2., 2.)
    keys = jax.random.split(KEY, 3)
    playing = begin(env, keys)
    go = jax.jit(lambda playing: advance(env, keys, playing, jnp.zeros(3, jnp.int32)))
    for _ in range(12):  # Pushed to the left, the pole falls within some ten steps.
        before = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), playing)
        playing, step, ended = go(playing)
        assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), playing) == before
        if ended.ended.any():
            break
    assert step.terminated.any() and (step.reward == 1).all()
    np.testing.assert_array_equal(ended.total[ended.ended], ended.length[ended.ended])
    with pytest.raises(UserError, match=r"name=CartPole-v2: no such environment\. Did"):
        _ = Gymnax(name="CartPole-v2").actions()
    assert config.from_json(config.to_json(env)) == env


def test_what_gymnax_makes_while_a_function_is_traced_serves_the_next_one() -> None:
    pytest.importorskip("gymnax", reason="pip install 'jaxdl[rl]'")
    env = Gymnax(name="Breakout-MinAtar")  # It has arrays of its own.
    state, _ = jax.jit(env.reset)(KEY)
    _, step = jax.jit(env.step)(KEY, state, jnp.int32(0))
    assert step.observation.shape == env.shape() == (10, 10, 4)


def test_brax() -> None:
    pytest.importorskip("brax", reason="pip install 'jaxdl[brax]'")
    env = Brax(name="inverted_pendulum", backend="spring", limit=3)
    assert (env.actions(), env.shape()) == (Box(1, -1., 1.), (4,))
    keys = jax.random.split(KEY, 2)
    playing = jax.jit(lambda: begin(env, keys))()
    go = jax.jit(lambda playing: advance(env, keys, playing, jnp.zeros((2, 1))))
    for i in range(3):
        before = jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), playing)
        playing, step, ended = go(playing)
        assert jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), playing) == before
        assert step.truncated.tolist() == [i == 2] * 2 and not step.terminated.any()
    assert ended.length.tolist() == [3, 3] and playing.length.tolist() == [0, 0]
    hopper = Brax(name="hopper", backend="spring")  # Its step writes numbers into what it is given.
    state, _ = jax.eval_shape(hopper.reset, KEY)
    after, _ = jax.eval_shape(hopper.step, KEY, state, jnp.zeros(3))
    assert jax.tree.map(lambda x: x.dtype, after) == jax.tree.map(lambda x: x.dtype, state)
    with pytest.raises(UserError, match=r"name=reecher: no such environment\. Did you mean 'rea"):
        _ = Brax(name="reecher").actions()
    assert config.from_json(config.to_json(env)) == env
