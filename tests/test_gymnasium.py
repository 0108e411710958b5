"""Environments in Python: the plain loop's numbers, and an episode that is played again to where
it was."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import cli, config
from jaxdl.envs.environment import Box, Discrete, advance, begin
from jaxdl.envs.gymnasium import Gymnasium, alive
from jaxdl.errors import UserError
from tests.promises import resumes

gymnasium: Any = pytest.importorskip("gymnasium", reason="pip install 'jaxdl[gymnasium]'")

KEY = jax.random.key(0)
CARTPOLE = Gymnasium(name="CartPole-v1", limit=60)
MINE = '''
import gymnasium
import numpy as np


class Walk(gymnasium.Env):
    """A step on a line; to the left of 0 it breaks down, and `Drunken` draws from elsewhere."""

    observation_space = gymnasium.spaces.Box(-10, 10, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-2, 2, (1,), np.float32)
    drunken = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = np.zeros(1, np.float32)
        return self.at, {}

    def step(self, action):
        self.at = self.at + action + (np.random.rand() if self.drunken else 0)
        if self.at[0] < 0:
            raise ValueError("it fell off the line")
        return self.at.astype(np.float32), -float(self.at[0]), False, False, {}


class Drunken(Walk):
    drunken = True


class Wide(Walk):
    """Shows two numbers where it has said one."""

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}


class Bits(Walk):
    action_space = gymnasium.spaces.MultiBinary(3)


class Endless(Walk):
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)


for kind in (Walk, Drunken, Wide, Bits, Endless):
    gymnasium.register(f"{kind.__name__}-v0", kind)
'''


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """None is alive from another test."""
    alive.cache_clear()
    yield
    alive.cache_clear()


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "walks_of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("walks_of_mine", None)
    for name in ("Walk-v0", "Drunken-v0", "Wide-v0", "Bits-v0", "Endless-v0"):
        gymnasium.registry.pop(name, None)


def test_it_is_the_plain_loop_of_gymnasium() -> None:
    assert (CARTPOLE.actions(), CARTPOLE.shape()) == (Discrete(2), (4,))
    reset, step = jax.jit(CARTPOLE.reset), jax.jit(CARTPOLE.step)
    state, observation = reset(KEY)
    plain = gymnasium.make("CartPole-v1")
    np.testing.assert_array_equal(observation, plain.reset(seed=int(state.seed))[0])
    for action in [0, 1, 1, 0] * 3 + [1] * 20:
        expected, reward, terminated, truncated, _ = plain.step(action)
        state, answer = step(KEY, state, jnp.int32(action))
        np.testing.assert_array_equal(answer.observation, expected)
        assert (answer.reward, answer.terminated, answer.truncated) == (reward, terminated,
                                                                       truncated)
        if terminated:
            break
    assert terminated and int(state.time) > 12
    assert config.from_json(config.to_json(CARTPOLE)) == CARTPOLE


def played(steps: int, forget: int | None = None) -> tuple[Any, list[Any]]:
    """Sixteen environments after so many steps, and the answers; after `forget` of them nothing is
    alive any more, as in another process."""
    keys = jax.random.split(KEY, 16)
    go = jax.jit(lambda playing, keys, action: advance(CARTPOLE, keys, playing, action))
    playing, answers = jax.jit(lambda: begin(CARTPOLE, keys))(), []
    for i in range(steps):
        if i == forget:
            alive("CartPole-v1").playing.clear()
        keys = jax.random.split(jax.random.key(i), 16)
        playing, step, ended = go(playing, keys, jax.random.bits(keys[0], (16,)) % 2)
        answers.append((step, ended))
    return playing, answers


def test_an_episode_is_played_again_where_nothing_is_alive() -> None:
    one, answers = played(40)
    assert sum(int(ended.ended.sum()) for _, ended in answers) > 10  # Some began anew.
    assert len(alive("CartPole-v1").playing) <= 64
    alive.cache_clear()
    jax.tree.map(np.testing.assert_array_equal, (one, answers), played(40, forget=25))


def test_from_one_state_two_ways_lead_on() -> None:
    """The functions are pure: what is asked twice is answered twice the same."""
    step = jax.jit(CARTPOLE.step)
    state, _ = CARTPOLE.reset(KEY)
    state, _ = step(KEY, state, jnp.int32(1))
    first = step(KEY, state, jnp.int32(0))
    other = step(KEY, state, jnp.int32(1))
    jax.tree.map(np.testing.assert_array_equal, first, step(KEY, state, jnp.int32(0)))
    assert first[1].observation[1] < other[1].observation[1]


@pytest.mark.parametrize("name", ["Bits", "Endless"])
def test_actions_that_nobody_can_take(name: str, mine: None) -> None:
    with pytest.raises(UserError, match="neither one of several nor a vector with one finite"):
        Gymnasium(name=f"walks_of_mine:{name}-v0").actions()


def test_observations_are_what_they_were_said_to_be(mine: None) -> None:
    with pytest.raises(UserError, match=r"has the shape \(2,\); by its .* they have \(1,\)"):
        alive("walks_of_mine:Wide-v0").begin(0)


def test_your_own_and_what_it_raises(mine: None) -> None:
    walk = Gymnasium(name="walks_of_mine:Walk-v0", limit=3)
    assert walk.actions() == Box(1, -2., 2.)
    state, _ = walk.reset(KEY)
    for i in range(3):
        state, answer = walk.step(KEY, state, jnp.array([0.5]))
        assert answer.reward == -0.5 * (i + 1) and bool(answer.truncated) == (i == 2)
    with pytest.raises(Exception, match=r"name=walks_of_mine:Walk-v0: ValueError: it fell off the "
                                        r"line \(.*walks_of_mine.py:21\)"):
        jax.block_until_ready(walk.step(KEY, walk.reset(KEY)[0], jnp.array([-1.])))
    drunken = Gymnasium(name="walks_of_mine:Drunken-v0")
    state, _ = drunken.step(KEY, drunken.reset(KEY)[0], jnp.array([0.]))
    alive(drunken.name).playing.clear()
    with pytest.raises(Exception, match="shows another observation, so its runs cannot be resumed"):
        jax.block_until_ready(drunken.step(KEY, state, jnp.array([0.])))


@pytest.mark.parametrize(("name", "message"), [
    ("CartPole-v9", "name=CartPole-v9: .*CartPole"), ("Blackjack-v1", "its observations are Tuple"),
    ("no_such_module:X-v0", "no_such_module")])
def test_names_that_are_none(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Gymnasium(name=name).actions()


FILE = '''
from jaxdl.data.nothing import Nothing
from jaxdl.envs.gymnasium import Gymnasium
from jaxdl.episodes import Episodes
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.actor_critic import ActorCritic
from jaxdl.optimizer import Adam, Linear
from jaxdl.tasks.ppo import PPO

def config():
    return Experiment(
        task=PPO(model=ActorCritic(outputs=2, widths=(16,)), horizon=32,
                 env=Gymnasium(name="CartPole-v1", limit=500)),
        data=Nothing(), optimizer=Adam(learning_rate=Linear(peak=1e-2, end=0.1), clip=0.5),
        evals={"test": Episodes(every=10, count=5, limit=100)},
        steps=20, batch_size=16, log_every=5, save_every=5, mesh=Mesh(data=1))
'''


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    (tmp_path / "poles.py").write_text(FILE)
    return f"--experiment={tmp_path / 'poles.py'}"


def test_ppo_learns_in_it(experiment: str, tmp_path: Path,
                          capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([experiment, f"--workdir={tmp_path / 'run'}"]) == 0
    found = {line.split()[0]: line.split()[1] for line in capfd.readouterr().out.splitlines()
             if line.startswith("test/")}
    assert float(found["test/return"]) > 40  # of at most 100; untrained about 10 or 20


def test_it_resumes_bit_exactly(experiment: str, tmp_path: Path) -> None:
    resumes(experiment, tmp_path, 8)


def test_a_run_that_it_ends_is_told_of_in_a_line(experiment: str, mine: None, tmp_path: Path,
                                                 capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([experiment, "--task.env.name=walks_of_mine:Walk-v0", "--steps=2",
                     f"--workdir={tmp_path / 'run'}"]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: Gymnasium: name=walks_of_mine:Walk-v0: ValueError: it fell ")
    assert error.count("\n") == 1
