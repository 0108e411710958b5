"""Pictures of episodes and games."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from jaxdl import films
from jaxdl.envs import frames
from jaxdl.envs.grid_world import GridWorld
from jaxdl.models.actor_critic import ActorCritic
from jaxdl.pictures import Material
from jaxdl.tasks.ppo import PPO

KEY = jax.random.key(0)
BATCH = {"index": jnp.arange(4), "mask": jnp.ones(4)}
MAZE = GridWorld(maze=("S.G", "#X."), limit=5)
MATERIAL = Material(source=lambda split: None, split="test", batch_size=4)  # type: ignore
BLUE, GREEN = (0.2, 0.4, 0.85), (0.2, 0.7, 0.3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Right:
    """Goes to the right, always."""

    env: GridWorld = MAZE

    def act(self, state: Any, observation: jax.Array, key: jax.Array | None) -> jax.Array:
        return jnp.ones(len(observation), jnp.int32)


def test_a_strip_is_of_one_episode_to_its_end() -> None:
    (strip,) = films.pictures(Right(), jnp.zeros(()), MATERIAL)
    assert strip.captions == ["step 0", "step 1"]  # where it was before each of two moves
    fields = strip.images[:, ::40, ::40]
    assert fields.shape == (2, 2, 3, 3)
    np.testing.assert_allclose(fields[0, 0], [BLUE, (1, 1, 1), GREEN], rtol=1e-6)
    np.testing.assert_allclose(fields[1, 0], [(1, 1, 1), BLUE, GREEN], rtol=1e-6)
    assert strip.note == "Its return is 0.98 in 2 steps."


def test_a_film_in_the_run(tmp_path: Path) -> None:
    seen = jax.jit(lambda: films.watched(Right(), jnp.zeros(()), KEY))()
    pictures, steps = films.drawn(MAZE, seen, 100)
    assert steps == [0, 1]
    films.film(tmp_path / "films" / "a.gif", pictures)
    with Image.open(tmp_path / "films" / "a.gif") as film:
        assert film.n_frames == 2 and film.size == (120, 80)  # type: ignore[attr-defined]
    many = jax.tree.map(lambda x: jnp.repeat(x[:1], 300, 0), seen)
    assert len(films.drawn(MAZE, many, 12)[1]) == 12 and films.drawn(MAZE, many, 12)[1][-1] == 299


def test_nothing_is_shown_of_what_has_no_pictures() -> None:
    class Dark(GridWorld):
        def frame(self, state: Any, observation: np.ndarray) -> Any:
            return None

    assert list(films.pictures(Right(env=Dark(limit=3)), jnp.zeros(()), MATERIAL)) == []


def test_tasks_show_their_episodes() -> None:
    task = PPO(model=ActorCritic(outputs=4, widths=()), env=MAZE, horizon=2)
    state = jax.jit(lambda: task.init(KEY, BATCH, optax.sgd(1.)))()
    assert next(task.pictures(state, MATERIAL)).title == "An episode"


@pytest.mark.parametrize("name", sorted(frames.STATES))
def test_classic_control(name: str) -> None:
    pytest.importorskip("gymnax", reason="pip install 'jaxdl[rl]'")
    from jaxdl.envs.gymnax import Gymnax

    env = Gymnax(name=name)
    state, observation = env.reset(KEY)
    first = env.frame(state, np.asarray(observation))
    assert first is not None and first.shape == (frames.SIZE, frames.SIZE, 3)
    assert 0 <= first.min() < 0.9 and first.max() == 1
    moved: Any = jax.tree.map(lambda x: x + 0.5 if jnp.issubdtype(x.dtype, jnp.floating) else x,
                              state)
    other = env.frame(moved, np.asarray(observation))
    assert other is not None and (other != first).any()


def test_what_stands_upright_does() -> None:
    @dataclasses.dataclass
    class State:
        theta: float
        x: float = 0.
        last_u: float = 0.

    def wood(image: np.ndarray) -> tuple[float, float]:
        """The middle of the wood: (to the right, down), from that of the picture."""
        colour = np.array([0xb5, 0x65, 0x1d]) / 255
        rows, columns = np.nonzero(np.abs(image - colour).sum(-1) < 0.1)
        return float(columns.mean() - frames.SIZE / 2), float(rows.mean() - frames.SIZE / 2)

    for draw in (frames.pendulum, frames.cart_pole):
        x, up = wood(draw(State(0.)))
        assert abs(x) < 2
        assert wood(draw(State(np.pi)))[1] > up + 20  # hanging
    assert wood(frames.cart_pole(State(0.5)))[0] > 5  # a positive angle is to the right
    assert wood(frames.pendulum(State(0.5)))[0] < -5  # and here to the left, as in Gymnasium


def test_boards() -> None:
    board = frames.stones(np.array([[1, 0, 0], [0, 0, 0]]), np.array([[0, 0, 0], [0, 0, 1]]))
    black, white = board[20 + 20, 20], board[20 + 60, 100]
    assert black.max() < 0.2 and white.min() > 0.95


def test_a_game_against_itself() -> None:
    pytest.importorskip("pgx", reason="pip install 'jaxdl[rl]'")
    from jaxdl.envs.board import Pgx

    class First:
        """Always moves where it can first: the first to move wins by the seventh move."""

        game = Pgx(name="tic_tac_toe")

        def move(self, state: Any, positions: Any, key: jax.Array) -> jax.Array:
            return positions.legal.argmax(-1)

    (strip,) = films.game(First(), jnp.zeros(()), MATERIAL)
    assert len(strip.images) == 8 and strip.captions[-1] == "move 7"
    assert strip.note == "It is won by the first to move."
