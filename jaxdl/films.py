"""Episodes and games to look at: films in the run, and strips of pictures in the report."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.envs.environment import advance, begin
from jaxdl.pictures import Images, Material

Array = jax.Array
LONGEST = 500  # steps of a film
FRAMES = 100  # pictures of a film, at most
SHOWN = 12  # pictures of a strip


def acted(task: Any, state: Any, observation: Array, key: Array | None,
          carry: Any) -> tuple[Array, Any]:
    """(actions [N, ...] of observations, what is carried on), drawn with the key; None takes the
    likeliest."""
    if hasattr(task, "start"):
        return task.act(state, observation, key, carry)
    return task.act(state, observation, key), ()


def carried(task: Any, count: int) -> Any:
    """What a task's policy carries before the first observation of each episode: that of its
    method `start`, () where it has none."""
    return task.start(count) if hasattr(task, "start") else ()


def watched(task: Any, state: Any, key: Array) -> Any:
    """(states, observations, rewards, whether the episode ended) of each step of an episode,
    [LONGEST, ...]; what follows its end is of another one."""
    def one(now: Any, key: Array) -> tuple[Any, Any]:
        playing, carry = now
        action, carry = acted(task, state, playing.observation, None, carry)
        after, step, ended = advance(task.env, key[None], playing, action)
        return (after, carry), jax.tree.map(lambda x: x[0], (
            playing.states, playing.observation, step.reward, ended.ended))

    start = begin(task.env, key[None]), carried(task, 1)
    return jax.lax.scan(one, start, jax.random.split(jax.random.fold_in(key, 1), LONGEST))[1]


def drawn(env: Any, seen: Any, most: int) -> tuple[list[np.ndarray], list[int]]:
    """(at most so many pictures of what was watched, spread evenly, their steps); nothing of an
    environment that has none."""
    states, observations, _, ended = jax.device_get(seen)
    length = int(ended.argmax()) + 1 if ended.any() else len(ended)
    steps = sorted({round(x) for x in np.linspace(0, length - 1, min(most, length))})
    frames = [env.frame(jax.tree.map(lambda x, i=i: x[i], states), observations[i])
              for i in steps] if hasattr(env, "frame") else []
    if any(frame is None for frame in frames):
        return [], []
    return frames, steps


def film(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Writes an animated GIF of pictures [H, W, 3] in [0, 1], 25 in a second, over and over."""
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    first, *rest = [Image.fromarray(np.round(255 * frame).astype(np.uint8)) for frame in frames]
    first.save(path, save_all=True, append_images=rest, duration=40, loop=0)


def pictures(task: Any, state: Any, material: Material) -> Iterator[Images]:
    """An episode of the likeliest actions, as a task's method `pictures`."""
    if not hasattr(task.env, "frame"):
        return
    seen = jax.jit(lambda state: watched(task, state, jax.random.key(0)))(state)
    frames, steps = drawn(task.env, seen, SHOWN)
    if frames:
        ended = np.asarray(seen[3])
        last = int(ended.argmax()) if ended.any() else len(ended) - 1
        yield Images(title="An episode", images=np.stack(frames),
                     captions=[f"step {i}" for i in steps],
                     note=f"Its return is {float(np.asarray(seen[2])[:last + 1].sum()):.6g} in "
                          f"{last + 1} steps" + ("." if ended.any() else ", and it goes on."))


def game(task: Any, state: Any, material: Material) -> Iterator[Images]:
    """A game against itself, as a task's method `pictures`."""
    move = jax.jit(lambda state, positions, key: task.move(state, positions, key))
    play = jax.jit(jax.vmap(task.game.play))
    positions = jax.jit(lambda: jax.vmap(task.game.begin)(jax.random.key(0)[None]))()
    frames, key = [], jax.random.key(0)
    while hasattr(task.game, "frame") and len(frames) <= LONGEST:
        frame = task.game.frame(jax.tree.map(lambda x: x[0], positions), len(frames))
        if frame is None:
            return
        frames.append(frame)
        if bool(jnp.asarray(positions.over)[0]):
            break
        positions = play(positions, move(state, positions, jax.random.fold_in(key, len(frames))))
    if frames:
        steps = sorted({round(x) for x in np.linspace(0, len(frames) - 1, 2 * SHOWN)})
        mover = ("second", "first")[len(frames) % 2 == 0]  # of the last move
        end = {0: "a draw", 1: f"won by the {mover} to move"}.get(
            int(positions.reward[0]), f"lost by the {mover} to move")
        if not bool(jnp.asarray(positions.over)[0]):
            end = "not over"
        yield Images(title="A game against itself", images=np.stack([frames[i] for i in steps]),
                     captions=[f"move {i}" for i in steps], note=f"It is {end}.")
