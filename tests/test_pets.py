"""Planning with a learned model: its loss against NumPy, its plans where the best one is known."""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import cli, replay
from jaxdl.envs.environment import Box, Step, Transition
from jaxdl.envs.grid_world import GridWorld
from jaxdl.errors import UserError
from jaxdl.models.dynamics import Dynamics
from jaxdl.models.mlp import MLP
from jaxdl.tasks.pets import PETS, measured
from tests.promises import one_program, resumes

KEY = jax.random.key(0)
BATCH = {"index": jnp.arange(2), "mask": jnp.ones(2)}
TX = optax.adam(1e-2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Track:
    """A point on a line goes where it is pushed, and is to come to the origin; twenty steps."""

    def actions(self) -> Box:
        return Box(1, -0.5, 0.5)

    def shape(self) -> tuple[int, ...]:
        return (1,)

    def reset(self, key: jax.Array) -> tuple[Any, jax.Array]:
        place = jax.random.uniform(key, (1,), minval=-2., maxval=2.)
        return (place, jnp.int32(0)), place

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> tuple[Any, Step]:
        place, time = state[0] + action, state[1] + 1
        return (place, time), Step(place, -jnp.abs(place)[0], jnp.array(False), time >= 20)


TASK = PETS(model=Dynamics(outputs=2, widths=(16,), members=2), env=Track(), horizon=10, updates=4,
            sample=8, memory=200, warmup=2, ahead=5, candidates=64, elites=6, rounds=4)


def test_the_loss_against_numpy() -> None:
    state = jax.jit(lambda: TASK.init(KEY, BATCH, TX))()
    random = np.random.default_rng(0)
    seen, action, after = random.normal(size=(3, 2, 6, 1)).astype(np.float32)
    reward = random.normal(size=(2, 6)).astype(np.float32)
    rows = Transition(*map(jnp.asarray, (seen, action, reward, reward, after)))
    scales = ((jnp.array([0.5, 0.]), jnp.array([2., 1.])), (jnp.array([0.1, -1.]),
                                                           jnp.array([0.7, 3.])))
    inputs = (np.concatenate([seen, action], -1) - [0.5, 0.]) / [2., 1.]
    found: Any = TASK.model.apply({"params": state.params}, jnp.asarray(inputs, jnp.float32))
    mean, log = map(np.asarray, found)
    assert mean.shape == log.shape == (2, 6, 2) and not np.allclose(mean[0], mean[1])
    assert log.min() > -5 and log.max() < 0.5
    goal = (np.concatenate([after - seen, reward[..., None]], -1) - [0.1, -1.]) / [0.7, 3.]
    expected = (((goal - mean) / np.exp(log)) ** 2 / 2 + log).mean()
    loss, metrics = jax.jit(TASK.loss)(state.params, scales, rows)
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    assert float(metrics["error"]) == pytest.approx(float(((goal - mean) ** 2).mean()), rel=1e-4)


def test_scales_are_of_what_is_remembered() -> None:
    row = Transition(*(jnp.zeros(s) for s in ((1,), (1,), (), (), (1,))))
    seen = np.array([[1.], [2.], [6.]], np.float32)
    rows = Transition(jnp.asarray(seen), jnp.zeros((3, 1)), jnp.array([1., 1., 4.]), jnp.ones(3),
                      jnp.asarray(2 * seen))
    (center, width), (middle, spread) = measured(replay.added(replay.empty(row, 10), rows))
    np.testing.assert_allclose(center, [3, 0], atol=1e-6)
    np.testing.assert_allclose(width, [seen.std(), 0], atol=1e-5)
    np.testing.assert_allclose(middle, [3, 2], atol=1e-6)
    np.testing.assert_allclose(spread, [seen.std(), np.std([1, 1, 4])], atol=1e-5)


def test_it_plans_the_best_way_by_the_true_model() -> None:
    class True_(PETS):
        def predicted(self, params: Any, scales: Any, observation: Any, action: Any) -> Any:
            after = observation + action / 2  # in units of half the range
            mean = jnp.concatenate([action / 2, -jnp.abs(after)], -1)
            return mean, jnp.zeros_like(mean)

    task = True_(**{f.name: getattr(TASK, f.name) for f in dataclasses.fields(TASK)})
    state = jax.jit(lambda: task.init(KEY, BATCH, TX))()
    places = jnp.array([[-2.], [-0.3], [0.], [0.2], [1.7]])
    found = jax.jit(lambda: task.act(state, places, None))()
    np.testing.assert_allclose(found[:, 0], [0.5, 0.3, 0., -0.2, -0.5], atol=0.12)


@pytest.mark.parametrize(("changes", "message"), [
    ({"memory": 10}, r"task.memory=10: an iteration plays batch_size \* horizon = 20 transitions"),
    ({"env": GridWorld()}, "PETS takes observations that are vectors and actions that are real"),
    ({"elites": 65}, "task.elites=65: there are task.candidates=64"),
    ({"model": Dynamics(outputs=3)}, r"predicts 3 numbers; .* are 2 \(outputs\)"),
    ({"model": MLP(classes=2)}, "task.model=MLP: has no members, as Dynamics has")])
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda: dataclasses.replace(TASK, **changes).init(KEY, BATCH, TX))


FILE = f'''
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from jaxdl.data.nothing import Nothing
from jaxdl.envs.environment import Box, Step
from jaxdl.episodes import Episodes
from jaxdl.experiment import Experiment, Mesh
from jaxdl.models.dynamics import Dynamics
from jaxdl.optimizer import Adam, Constant
from jaxdl.tasks.pets import PETS

{inspect.getsource(Track)}

def config():
    return Experiment(
        task=PETS(model=Dynamics(outputs=2, widths=(32,), members=2), env=Track(), horizon=20,
                  updates=80, memory=400, warmup=3, ahead=5, candidates=50, elites=5, rounds=3),
        data=Nothing(), optimizer=Adam(learning_rate=Constant(peak=5e-3)),
        evals={{"test": Episodes(every=15, count=20, limit=20)}},
        steps=15, batch_size=1, log_every=3, save_every=3, mesh=Mesh(data=1))
'''


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    path = tmp_path / "tiny_pets.py"
    path.write_text(FILE)
    return f"--experiment={path}"


def test_it_learns_to_plan(experiment: str, tmp_path: Path,
                           capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([experiment, f"--workdir={tmp_path / 'run'}"]) == 0
    found = float(capfd.readouterr().out.rsplit("test/return", 1)[1].split()[0])
    assert found > -6  # The best possible has about -1, who stays where it is -20.


def test_it_resumes_bit_exactly(experiment: str, tmp_path: Path) -> None:
    resumes(experiment, tmp_path, 9)


def test_seeds_are_one_program(experiment: str, tmp_path: Path, programs: list[int]) -> None:
    one_program(experiment, tmp_path, programs, "--steps=5")
