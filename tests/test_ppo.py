"""PPO: its loss against NumPy, what it learns, and the core that does not know of it."""

import dataclasses
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import cli, config
from jaxdl.envs.environment import Box
from jaxdl.envs.grid_world import GridWorld
from jaxdl.episodes import Episodes
from jaxdl.errors import UserError
from jaxdl.matmul import narrow
from jaxdl.models.actor_critic import ActorCritic
from jaxdl.models.mlp import MLP
from jaxdl.tasks.ppo import PPO, Played, shuffled
from tests import tiny
from tests.promises import one_program, resumes

ROOT = Path(__file__).parent.parent
KEY = jax.random.key(0)
BATCH = {"index": jnp.arange(4), "mask": jnp.ones(4)}
TASK = PPO(model=ActorCritic(outputs=4, widths=(8,)), env=GridWorld(limit=6), horizon=8, epochs=2,
           minibatches=2)
TX = optax.adam(1e-2)


def initial(task: PPO) -> Any:
    return jax.jit(lambda: task.init(KEY, BATCH, TX))()


def test_the_loss_against_numpy() -> None:
    state = initial(TASK)
    random = np.random.default_rng(0)
    observation = np.eye(16, dtype=np.float32)[random.integers(0, 16, 10)]
    action = random.integers(0, 4, 10)
    said, value = jax.jit(TASK.apply)(state.params, observation)
    logits = np.asarray(said, np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    old = logs[range(10), action] + random.normal(size=10, scale=0.3)
    before, advantage = random.normal(size=(2, 10))
    loss, found = jax.jit(TASK.loss)(state.params, Played(*map(jnp.asarray, (
        observation, action, old, before, advantage))))
    ratio = np.exp(logs[range(10), action] - old)
    a = (advantage - advantage.mean()) / advantage.std()
    gain = np.minimum(ratio * a, np.clip(ratio, 0.8, 1.2) * a).mean()
    error = ((value - (before + advantage)) ** 2).mean() / 2
    entropy = -(np.exp(logs) * logs).sum(-1).mean()
    np.testing.assert_allclose(loss, -gain + 0.5 * error - 0.01 * entropy, rtol=1e-4)
    np.testing.assert_allclose(found["clipped"], (abs(ratio - 1) > 0.2).mean())
    np.testing.assert_allclose(found["kl"], (ratio - 1 - np.log(ratio)).mean(), rtol=1e-4)


def test_what_was_played_is_what_the_policy_did() -> None:
    """From the observations and actions of a rollout, step by step, come the rewards that its
    advantages are made of; and the environments go on where they were."""
    state = initial(TASK)
    play = jax.jit(TASK.play)
    after, played, metrics = play(state, KEY)
    said, value = jax.jit(TASK.apply)(state.params, played.observation.reshape(-1, 16))
    np.testing.assert_allclose(played.value.reshape(-1), value, rtol=1e-5)
    np.testing.assert_allclose(played.log_probability.reshape(-1), jax.nn.log_softmax(said)[
        jnp.arange(32), played.action.reshape(-1)], rtol=1e-5)
    np.testing.assert_array_equal(played.observation[0], state.playing.observation)
    assert metrics["return"].count == metrics["length"].count > 0  # limit=6 < horizon=8
    assert metrics["length"].value() <= 6
    # 1 for the goal, -1 for the pit, -0.01 for each move.
    assert set(np.round(np.asarray(played.reward).ravel(), 4)) <= {
        np.float32(-0.01), np.float32(0.99), np.float32(-1.01)}
    again, later, _ = play(after, KEY)
    np.testing.assert_array_equal(later.observation[0], after.playing.observation)
    assert again.playing.length.shape == (4,)


def test_an_order_has_each_number_once_and_any_place_is_as_likely() -> None:
    orders = np.asarray(jax.vmap(lambda key: shuffled(key, 6))(jax.random.split(KEY, 3_000)))
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(6), (3_000, 1)))
    places = [np.bincount(column, minlength=6) / 3_000 for column in orders.T]
    np.testing.assert_allclose(places, 1 / 6, atol=0.03)
    assert shuffled(KEY, 1).tolist() == [0]


def test_narrow_layers_are_dense_layers() -> None:
    x, target = jax.random.normal(KEY, (9, 5)), jnp.arange(9.)

    def loss(layer: Any, variables: Any, x: Any) -> Any:
        return jnp.square(layer.apply(variables, x)[:, 0] - target).sum()

    plain, narrow_ = nn.Dense(3), nn.Dense(3, dot_general=narrow)
    variables = plain.init(KEY, x)
    expected = jax.grad(partial(loss, plain), argnums=(0, 1))(variables, x)
    chex.assert_trees_all_close(jax.grad(partial(loss, narrow_), argnums=(0, 1))(variables, x),
                                expected, rtol=1e-5)
    several = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), variables)
    chex.assert_trees_all_close(jax.vmap(narrow_.apply, (0, None))(several, x),
                                jax.vmap(plain.apply, (0, None))(several, x), rtol=1e-5)


def test_it_updates_as_often_as_it_says() -> None:
    state = initial(TASK)
    after, metrics = jax.jit(lambda s: TASK.step(s, BATCH, TX))(state)
    assert int(after.opt_state[0].count) == TASK.updates_per_step("") == 4
    assert int(after.step) == 1 and int(after.seen) == 4
    assert {"loss", "policy_loss", "value_loss", "entropy", "kl", "return"} <= set(metrics)


@pytest.mark.parametrize(("changes", "message"), [
    ({"minibatches": 5}, r"task.minibatches=5 does not divide batch_size \* horizon = 32"),
    ({"model": ActorCritic(outputs=3, widths=())}, "says 3 numbers of what to do; the actions of "
                                                   r"task.env take 4 \(outputs\)"),
    ({"model": MLP(classes=4)}, r"MLP: returns 1 of 2 expected parts \(policy, values\)")])
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: dataclasses.replace(TASK, **changes).init(KEY, BATCH, TX))


FILE = '''
from jaxdl.data.nothing import Nothing
from jaxdl.envs.grid_world import GridWorld
from jaxdl.episodes import Episodes
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.actor_critic import ActorCritic
from jaxdl.optimizer import Adam, Linear
from jaxdl.tasks.ppo import PPO

def config():
    return Experiment(
        task=PPO(model=ActorCritic(outputs=4, widths=(16,)), env=GridWorld(), horizon=16),
        data=Nothing(), optimizer=Adam(learning_rate=Linear(peak=5e-3, end=0.1), clip=0.5),
        evals={"test": Episodes(every=10, count=20)},
        steps=20, batch_size=16, log_every=5, save_every=5, mesh=Mesh(data=1))
'''


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    (tmp_path / "tiny_ppo.py").write_text(FILE)
    return f"--experiment={tmp_path / 'tiny_ppo.py'}"


def test_it_finds_the_shortest_way(experiment: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli.main([experiment, f"--workdir={run}"]) == 0
    lines = list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))
    first, last = (next(x for x in order if "test/return" in x) for order in (lines, lines[::-1]))
    assert last["test/return"] == pytest.approx(0.95) and last["test/length"] == 5
    assert last["test/interval"] < 1e-6 and last["step"] == 20 and first["step"] == 10


def test_a_check_asks_nothing_of_test_data_that_is_not_there(
        experiment: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", experiment, f"--workdir={tmp_path / 'check'}"]) == 0
    said = capfd.readouterr().out
    lines = {line.split()[0]: line for line in said.splitlines() if line}
    assert "there is no test data" in lines["masks"] and " - " in lines["evaluation"]
    assert "there are no examples" in lines["order"] and " - " in lines["inputs"]
    assert " pass " in lines["compiles_once"]
    assert "FAIL" not in said


def test_episodes_are_cut_at_the_limit_and_want_an_environment(
        experiment: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([experiment, "--steps=1", "--evals.test.limit=3", "--evals.test.count=5",
                     f"--workdir={tmp_path / 'run'}"]) == 0
    found = {line.split()[0]: line.split()[1] for line in capfd.readouterr().out.splitlines()
             if line.startswith("test/")}
    assert found["test/length"] == "3" and float(found["test/return"]) == pytest.approx(-0.03)
    with pytest.raises(UserError, match="Episodes: Classification plays no environment"):
        Episodes().check(tiny.plain())


def test_it_resumes_bit_exactly(experiment: str, tmp_path: Path) -> None:
    resumes(experiment, tmp_path, 8)


def test_seeds_are_one_program(experiment: str, tmp_path: Path, programs: list[int]) -> None:
    one_program(experiment, tmp_path, programs, "--steps=6", curve="train/return")


def test_convolutions_want_images() -> None:
    model = ActorCritic(outputs=2, channels=(4,))
    assert model.init(KEY, jnp.zeros((2, 5, 5, 3)), True)["params"]["conv1"]["kernel"].shape == (
        3, 3, 3, 4)
    with pytest.raises(UserError, match=r"task.model.channels=\(4,\): .* the shape \(9,\)"):
        model.init(KEY, jnp.zeros((2, 9)), True)


def test_no_line_of_the_core_knows_of_environments() -> None:
    from tests.test_core import CORE

    for name in CORE:
        text = (ROOT / "jaxdl" / f"{name}.py").read_text()
        assert not re.search(r"\b(env|envs|environments?_|rollout|episodes?|reward)\b", text), name


def test_actions_that_are_real_numbers() -> None:
    @dataclasses.dataclass(frozen=True)
    class Point:
        """A point on a line that is rewarded for being at 0.5."""

        def actions(self) -> Box:
            return Box(1, -1., 1.)

        def shape(self) -> tuple[int, ...]:
            return (1,)

        def reset(self, key: Any) -> Any:
            return jnp.int32(0), jnp.zeros(1)

        def step(self, key: Any, state: Any, action: Any) -> Any:
            from jaxdl.envs.environment import Step

            time = state + 1
            return time, Step(jnp.zeros(1), -(action[0] - 0.5) ** 2, jnp.array(False), time >= 4)

    task = PPO(model=ActorCritic(outputs=2, widths=(8,)), env=Point(), horizon=16,
               entropy_weight=0.)
    tx = optax.adam(1e-2)
    state = jax.jit(lambda: task.init(KEY, BATCH, tx))()
    state = jax.jit(lambda s: jax.lax.fori_loop(0, 60, lambda _, s: task.step(s, BATCH, tx)[0], s))(
        state)
    np.testing.assert_allclose(jax.jit(lambda s: task.act(s, jnp.zeros((2, 1)), None))(state), 0.5,
                               atol=0.1)
    assert config.from_json(config.to_json(TASK)) == TASK
