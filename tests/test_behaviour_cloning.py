"""Demonstrations: how they are played, kept and split, and what is learned from them."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import cli, config, trajectories
from jaxdl.data.demonstrations import DemonstrationFile, DemonstrationsOfRun
from jaxdl.envs.environment import Box
from jaxdl.envs.grid_world import GridWorld
from jaxdl.errors import DataMissing, UserError
from jaxdl.models.mlp import MLP
from jaxdl.policies import Gaussian
from jaxdl.tasks.behaviour_cloning import BehaviourCloning
from tests.promises import resumes

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
GRID = GridWorld(limit=7)
UP, RIGHT, DOWN, LEFT = range(4)
TASK = BehaviourCloning(model=MLP(widths=(), classes=4), env=GRID)


@dataclasses.dataclass(frozen=True)
class Guide:
    """Goes right to the wall and down to the goal: five steps; drawn, it goes anywhere."""

    env: GridWorld = GRID

    def act(self, state: Any, observation: Any, key: Any) -> Any:
        if key is not None:
            return jax.random.randint(key, (len(observation),), 0, 4)
        return jnp.where(observation.argmax(-1) % 4 == 3, DOWN, RIGHT)


def episodes(trajectory: Any, name: str) -> list[np.ndarray]:
    return [trajectory[name][trajectory["episode"] == i] for i in np.unique(trajectory["episode"])]


def test_episodes_are_played_whole_and_in_order() -> None:
    found = trajectories.played(Guide(), None, count=3)
    assert found["episode"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert found["action"].tolist() == [RIGHT, RIGHT, RIGHT, DOWN, DOWN] * 3
    assert found["observation"].argmax(-1).tolist() == [0, 1, 2, 3, 7] * 3
    np.testing.assert_allclose(found["reward"], [-0.01] * 4 + [0.99] + 2 * ([-0.01] * 4 + [0.99]))
    assert found["terminated"].tolist() == [False, False, False, False, True] * 3
    drawn = trajectories.played(Guide(GridWorld(limit=30)), None, count=20, drawn=True)
    lengths = [len(x) for x in episodes(drawn, "reward")]
    ended = [bool(x[-1]) for x in episodes(drawn, "terminated")]
    assert max(lengths) <= 30 and len(set(lengths)) > 1 and len(ended) == 20
    assert all(length == 30 or end for length, end in zip(lengths, ended, strict=True))
    # The environment answered these actions so: it is asked again.
    state, seen = GRID.reset(KEY)
    for i in range(lengths[0]):
        np.testing.assert_array_equal(drawn["observation"][i], seen)
        state, step = GRID.step(KEY, state, jnp.asarray(drawn["action"][i]))
        seen = step.observation
        assert float(step.reward) == drawn["reward"][i]


def test_a_file_of_them(tmp_path: Path) -> None:
    found = trajectories.played(Guide(), None, count=2)
    trajectories.save(tmp_path / "a.npz", found)
    again = trajectories.load(tmp_path / "a.npz")
    assert set(again) == set(found)
    assert all((again[n] == found[n]).all() and again[n].dtype == found[n].dtype for n in found)


@pytest.mark.parametrize(("changes", "message"), [
    ({"action": None}, "has no 'action'"),
    ({"episode": np.zeros(10, np.float32)}, r"'episode' is float32 \(10,\); expected whole"),
    ({"action": np.zeros(9, np.int32)}, r"'action' has the shape \(9,\); there are 10 steps"),
    ({"reward": np.array([0.] * 9 + [np.nan])}, "'reward' is not finite in step 9"),
    ({"observation": np.array(["one"] * 10)}, "'observation' is <U3; expected numbers"),
    ({"action": np.full(10, 1 << 40)}, "'action' has whole numbers beyond 32 bits"),
    ({"reward": np.zeros((10, 2))}, r"'reward' has the shape \(10, 2\); expected one number"),
    ({"action": np.array([None] * 10)}, "no npz file of arrays")])
def test_files_that_are_none(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    arrays = {**trajectories.played(Guide(), None, count=2), **changes}
    path = tmp_path / "a.npz"
    np.savez(path, **{n: x for n, x in arrays.items() if x is not None})
    with pytest.raises(UserError, match=message):
        trajectories.load(path)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "exploded",)

    path = tmp_path / "a.npz"
    for content in (pickle.dumps(Bomb()), b"", b"PK\x03\x04 nothing", b"\x93NUMPY"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="no npz file of arrays"):
            trajectories.load(path)
    np.savez(path, action=np.array([Bomb()], dtype=object))
    with pytest.raises(UserError, match="no npz file of arrays"):
        trajectories.load(path)
    assert not (tmp_path / "exploded").exists()


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Ten episodes of random lengths, whose observations tell which they are of."""
    episode = np.repeat(np.arange(10) + 3, RANDOM.integers(2, 6, 10))
    path = tmp_path / "a.npz"
    trajectories.save(path, {
        "observation": np.stack([episode, np.arange(len(episode))], 1).astype(np.float64),
        "action": episode.astype(np.int64) % 4, "reward": np.ones(len(episode)),
        "episode": episode})
    return str(path)


def test_no_episode_is_in_two_splits(file: str) -> None:
    data = DemonstrationFile(path=file, test=0.3)
    parts: dict[str, Any] = {split: data.open(split).arrays for split in ("train", "test")}
    known = {split: set(x["observation"][:, 0]) for split, x in parts.items()}
    assert len(known["train"]) == 7 and len(known["test"]) == 3
    assert not known["train"] & known["test"]
    steps = np.concatenate([x["observation"][:, 1] for x in parts.values()])
    assert sorted(steps) == list(range(len(data.all["reward"])))  # all of each episode
    assert parts["train"]["observation"].dtype == np.float32
    assert parts["train"]["action"].dtype == np.int32
    np.testing.assert_array_equal(parts["test"]["action"], parts["test"]["observation"][:, 0] % 4)
    source: Any = data.open("test")
    assert sorted(source.returns) == sorted((data.all["episode"] == i).sum()
                                            for i in known["test"])
    fewer = DemonstrationFile(path=file, test=0.3, episodes=2)
    few: Any = fewer.open("train")
    assert len(set(few.arrays["observation"][:, 0])) == len(few.returns) == 2
    assert set(few.arrays["observation"][:, 0]) <= known["train"]
    np.testing.assert_array_equal(fewer.open("test").read(np.arange(3))["action"],
                                  parts["test"]["action"][:3])
    assert fewer.fingerprint() != data.fingerprint() == DemonstrationFile(
        path=file, test=0.3).fingerprint()


def test_mistakes_in_the_data(file: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no split 'tets'.* Did you mean 'test'"):
        DemonstrationFile(path=file).open("tets")
    with pytest.raises(UserError, match="there are 10 episodes, 2 of them to test on"):
        DemonstrationFile(path=file, episodes=9).open("train")
    with pytest.raises(DataMissing, match="there is no such file"):
        DemonstrationFile(path=file + "x").prepare()
    with pytest.raises(DataMissing, match=r"train it: python launch\.py --experiment=ppo_cartpole "
                                          r"--workdir=.*/ppo_cartpole"):
        DemonstrationsOfRun(run=str(tmp_path / "ppo_cartpole")).prepare()


def batch_of(size: int, mask: Any = None) -> dict[str, Any]:
    return {"observation": jnp.eye(16)[RANDOM.integers(0, 16, size)], "index": jnp.arange(size),
            "action": jnp.asarray(RANDOM.integers(0, 4, size), jnp.int32),
            "mask": jnp.ones(size) if mask is None else mask}


def test_the_loss_of_one_of_several_actions() -> None:
    batch = batch_of(6, jnp.array([1., 1, 1, 1, 1, 0]))
    state = jax.jit(lambda: TASK.init(KEY, batch, optax.sgd(1.)))()
    kernel = RANDOM.normal(size=(16, 4)).astype(np.float32)
    state = dataclasses.replace(state, params={"head": {"kernel": kernel, "bias": jnp.zeros(4)}})
    found = jax.jit(TASK.evaluate)(state, batch)
    logits = kernel[np.asarray(batch["observation"]).argmax(-1)][:5]
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    action = np.asarray(batch["action"])[:5]
    np.testing.assert_allclose(found["loss"].value(), -np.log(p[range(5), action]).mean(),
                               rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"].value(), (logits.argmax(-1) == action).mean())
    assert found["loss"].count == 5
    np.testing.assert_allclose(TASK.initial_loss(batch), np.log(4), rtol=1e-6)
    act = jax.jit(TASK.act)
    seen = jnp.eye(16)
    np.testing.assert_array_equal(act(state, seen, None), kernel.argmax(-1))
    drawn = jax.jit(jax.vmap(lambda key: TASK.act(state, seen, key)))(jax.random.split(KEY, 2_000))
    expected = np.exp(kernel[3]) / np.exp(kernel[3]).sum()
    np.testing.assert_allclose(np.bincount(drawn[:, 3], minlength=4) / 2_000, expected, atol=0.04)


@dataclasses.dataclass(frozen=True)
class Arm(GridWorld):
    """Two real numbers between -1 and 3 are its actions."""

    def actions(self) -> Any:
        return Box(2, -1., 3.)


def test_the_loss_of_real_numbers() -> None:
    """They are cloned as the environment was given them: -1 ... 3 is -1 ... 1 to the policy."""
    task = dataclasses.replace(TASK, env=Arm())
    given = RANDOM.uniform(-1, 3, (6, 2)).astype(np.float32)
    batch = {**batch_of(6), "action": jnp.asarray(given)}
    state = jax.jit(lambda: task.init(KEY, batch, optax.sgd(1.)))()
    said = np.array([0.5, -0.25, 0.1, -0.3], np.float32)
    state = dataclasses.replace(state, params={"head": {"kernel": jnp.zeros((16, 4)),
                                                        "bias": jnp.asarray(said)}})
    found = jax.jit(task.evaluate)(state, batch)
    action, mean, deviation = (given - 1) / 2, said[:2], np.exp(said[2:])
    density = np.exp(-((action - mean) / deviation) ** 2 / 2) / deviation / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(found["loss"].value(), -np.log(density).sum(-1).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["squared_error"].value(), ((action - mean) ** 2).mean(),
                               rtol=1e-5)
    np.testing.assert_allclose(jax.jit(lambda s: task.act(s, jnp.eye(16)[:1], None))(state)[0],
                               1 + 2 * mean, rtol=1e-6)
    policy = Gaussian(Box(2, -1., 3.))
    np.testing.assert_allclose(policy.bounded(policy.own(jnp.asarray(given))), given, rtol=1e-5,
                               atol=1e-6)


@pytest.mark.parametrize(("changes", "task", "message"), [
    ({"action": jnp.zeros((4, 2))}, TASK, r"actions are float32 \(2,\); those of task.env are "
                                          r"whole numbers \(\)"),
    ({}, dataclasses.replace(TASK, env=Arm()), r"actions are int32 \(\); .* real numbers \(2,\)"),
    ({"observation": jnp.zeros((4, 9))}, TASK, r"have the shape \(9,\); .* have \(16,\)"),
    ({}, dataclasses.replace(TASK, model=MLP(classes=3)), "says 3 numbers .* task.env take 4")])
def test_demonstrations_of_another_environment(changes: dict[str, Any], task: BehaviourCloning,
                                               message: str) -> None:
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: task.init(KEY, {**batch_of(4), **changes}, optax.sgd(1.)))


def test_an_action_that_there_is_not_has_no_loss() -> None:
    batch = batch_of(4)
    state = jax.jit(lambda: TASK.init(KEY, batch, optax.sgd(1.)))()
    for action, known in (([0, 1, 2, 3], True), ([0, 1, 2, 4], False), ([-1, 1, 2, 3], False)):
        loss = jax.jit(TASK.evaluate)(state, {**batch, "action": jnp.array(action)})["loss"]
        assert bool(jnp.isfinite(loss.total)) == known


FILE = '''
from jaxdl.data.demonstrations import DemonstrationFile, DemonstrationsOfRun
from jaxdl.data.nothing import Nothing
from jaxdl.envs.grid_world import GridWorld
from jaxdl.episodes import Episodes
from jaxdl.evaluate import Evaluate
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.actor_critic import ActorCritic
from jaxdl.models.mlp import MLP
from jaxdl.optimizer import Adam, Constant
from jaxdl.tasks.behaviour_cloning import BehaviourCloning, Demonstrator
from jaxdl.tasks.ppo import PPO

ENV = GridWorld(limit=20)
'''

EXPERT = FILE + '''
def config():
    return Experiment(
        task=PPO(model=ActorCritic(outputs=4, widths=(8,)), env=ENV, horizon=8),
        data=Nothing(), optimizer=Adam(learning_rate=Constant(peak=1e-3)),
        steps=2, batch_size=4, mesh=Mesh(data=1))
'''

CLONE = FILE + '''
def config():
    return Experiment(
        task=BehaviourCloning(model=MLP(widths=(8,), classes=4), env=ENV),
        data=DATA,
        optimizer=Adam(learning_rate=Constant(peak=3e-2)),
        evals={"test": Evaluate(every=60), "played": Episodes(every=60, count=5, limit=20),
               "demonstrator": Demonstrator(every=60)},
        steps=60, batch_size=8, log_every=20, save_every=5, mesh=Mesh(data=1))
'''


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    trajectories.save(tmp_path / "guide.npz", trajectories.played(
        Guide(GridWorld(limit=20)), None, count=10))
    (tmp_path / "clone.py").write_text(CLONE.replace(
        "DATA", f"DemonstrationFile(path={str(tmp_path / 'guide.npz')!r})"))
    return f"--experiment={tmp_path / 'clone.py'}"


def results(out: str) -> dict[str, float]:
    return {line.split()[0]: float(line.split()[1]) for line in out.splitlines()
            if line.startswith(("test/", "played/", "demonstrator/"))}


def test_it_does_as_it_was_shown(experiment: str, tmp_path: Path,
                                 capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([experiment, f"--workdir={tmp_path / 'run'}"]) == 0
    found = results(capfd.readouterr().out)
    assert found["played/return"] == found["demonstrator/return"] == pytest.approx(0.95)
    assert found["test/accuracy"] == 1 and found["demonstrator/episodes"] == 8
    assert config.from_json(config.to_json(TASK)) == TASK


def test_it_resumes_bit_exactly(experiment: str, tmp_path: Path) -> None:
    resumes(experiment, tmp_path, 8)


def test_a_run_demonstrates(tmp_path: Path, programs: list[int],
                            capfd: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "expert"
    (tmp_path / "expert.py").write_text(EXPERT)
    assert cli.main([f"--experiment={tmp_path / 'expert.py'}", f"--workdir={run}"]) == 0
    (tmp_path / "clone.py").write_text(CLONE.replace(
        "DATA", f"DemonstrationsOfRun(run={str(run)!r}, step='last', count=10, drawn=True)"))
    seeds = tmp_path / "seeds"
    assert cli.main(["sweep", f"--experiment={tmp_path / 'clone.py'}", "--over", "seed=0,1",
                     "--executor=vmap", "--metric=test/loss", f"--workdir={seeds}"]) == 0
    assert "2 done" in capfd.readouterr().out and programs[-1] == 2
    data = DemonstrationsOfRun(run=str(run), step="last", count=10, drawn=True)
    assert data.fingerprint() == dataclasses.replace(data).fingerprint()
    assert len(np.unique(data.all["episode"])) == 10
    with pytest.raises(UserError, match="no checkpoint"):
        _ = DemonstrationsOfRun(run=str(run), step="7").all
