"""How good planned motions are: whether they touch anything, and how long they are beside those of
a sampling planner; with pictures of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import rrt
from jaxdl.compiled import compiled
from jaxdl.config import Count, Size
from jaxdl.data.progress import progress
from jaxdl.envs.drawn import strip
from jaxdl.envs.robots import line
from jaxdl.errors import UserError
from jaxdl.evaluate import Context
from jaxdl.generative import save

PIECES = 64  # that a line of the sampling planner is looked at in
STEP = 0.5  # norm of a line's change, at most
SIZE = 200  # of a panel of the picture, in pixels
KEY = jax.random.key(0)  # of functions that draw nothing


@dataclass(frozen=True, kw_only=True)
class Plans:
    """Each scene's motion (`Plan.answers`), and that of a sampling planner in the same scene: the
    shortest of `attempts` paths of RRT-Connect, each after `shortcuts` shortcuts. Where discs move
    it plans in space and time, under the same limit of speed, from time 0 to time 1; else in space.
    It moves as it likes: accelerations are no concern of it. All lines of both are proven
    to touch nothing (`robots.proven`).

    "collision_free" is the share of all scenes in which the motion is proven to touch nothing and
    to keep the limits, "moving_free" that of the scenes whose discs move, "straight_free" that in
    which the straight line does, "sampled_free" that in which the sampling planner has found a
    path. "length" and "sampled_length" are means over the scenes that both have solved, as is
    "length_ratio", of the one over the other; "no_longer" is the share of these in which it is
    1.1 at most. "moving" is the share of scenes with moving discs.

    The scenes and the answers of the sampling planner are the same in all of a run.

    Attributes:
      every: steps between two evaluations; the last step is always evaluated.
      pieces: poses that are looked at in an interval of a motion.
      attempts: paths of the sampling planner.
      samples: random points of each, at most.
      shortcuts: of each.
      shown: scenes in the picture that is written into the run, as plans/NAME_STEP.png.
    """

    every: Size = 1_000
    pieces: Size = 16
    attempts: Size = 4
    samples: Size = 2_000
    shortcuts: Size = 200
    shown: Count = 6

    def check(self, experiment: Any) -> None:
        """Raises a UserError where the task plans nothing."""
        if not hasattr(experiment.task, "answers"):
            raise UserError(f"Plans: {type(experiment.task).__name__} plans no motions.")

    def __call__(self, task: Any, state: Any, context: Context) -> Mapping[str, float]:
        answers = jax.device_get(compiled(context, "answers", task, lambda task, state, key:
                                          task.answers(state, self.pieces))(state, KEY))
        if (name := (context.name, "sampled")) not in context.compiled:
            context.compiled[name] = self.sampled(task, state.scenes, context)
        if context.folder is not None and self.shown:
            self.draw(task, state.scenes, answers.place, context)
        straight, sampled = context.compiled[name]
        moving = np.asarray(state.scenes.velocity).any((1, 2))
        found = np.asarray(answers.found)
        both = found & np.isfinite(sampled)
        ratio = answers.length[both] / sampled[both]

        def mean(x: Any) -> float:
            return float(x.mean()) if len(x) else math.nan

        return {"collision_free": mean(found), "length_ratio": mean(ratio),
                "no_longer": mean(ratio <= 1.1), "length": mean(answers.length[both]),
                "sampled_length": mean(sampled[both]), "sampled_free": mean(np.isfinite(sampled)),
                "straight_free": mean(straight > 0), "moving": mean(moving),
                "moving_free": mean(found[moving])}

    def sampled(self, task: Any, scenes: Any, context: Context) -> tuple[np.ndarray, np.ndarray]:
        """(what is proven of straight lines, lengths of the sampling planner's paths, infinite
        where it has found none), [N] each."""
        robot = bound(task, context).robot
        limit, speed = float(robot.limit), float(robot.speed)
        straight = compiled(context, "straight", task, lambda task, scenes, key: jax.vmap(
            lambda s: line(task.robot, s, jnp.stack([s.start, s.goal]), jnp.arange(2.), 1024))(
                scenes))
        check = compiled(context, "line", task, lambda task, given, key: line(
            task.robot, given[0], given[1][:, :-1], given[1][:, -1], PIECES) > 0)
        scenes = jax.device_get(scenes)
        lengths = np.full(len(scenes.start), np.inf)
        with progress("sampling planner", len(lengths)) as advance:
            for i in range(len(lengths)):
                lengths[i] = self.shortest(at(scenes, i), limit, speed, check, i)
                context.poll()
                advance(1)
        return np.asarray(straight(scenes, KEY)), lengths

    def shortest(self, scene: Any, limit: float, speed: float, check: Any, seed: int) -> float:
        """The length of the shortest path of several."""
        held = jax.device_put(scene)

        def free(points: np.ndarray) -> bool:
            # The last one again, so that few numbers of points are compiled.
            more = (1 << (len(points) - 2).bit_length()) + 1 - len(points)
            points = np.concatenate([points, points[-1:].repeat(more, 0)])
            return bool(check((held, points.astype(np.float32)), KEY))

        moves = bool(scene.velocity.any())
        start, goal = np.append(scene.start, 0.), np.append(scene.goal, float(moves))
        best = math.inf
        for attempt in range(self.attempts):
            random = np.random.default_rng((seed, attempt))
            path = rrt.rrt_connect(start, goal, limit, speed if moves else None, free, random,
                                   step=STEP, samples=self.samples)
            if path is not None:
                path = rrt.shortened(path, free, random, step=STEP, times=self.shortcuts)
                best = min(best, rrt.length(path))
        return best

    def draw(self, task: Any, scenes: Any, place: np.ndarray, context: Context) -> None:
        """Writes the picture."""
        task, scenes = bound(task, context), jax.device_get(scenes)
        rows = [strip(task.robot, at(scenes, i), place[i], 1.15 * float(task.scenes.reach), SIZE)
                for i in range(min(self.shown, len(place)))]
        save(context.folder / "plans" / f"{context.name}_{context.step:07d}.png",
             np.concatenate(rows), len(rows[0]))


def at(scenes: Any, i: int) -> Any:
    """One of several scenes."""
    return jax.tree.map(lambda x: x[i], scenes)


def bound(task: Any, context: Context) -> Any:
    """The task with the floats that it has in this trial."""
    return task if context.bound is None else context.bound(context.knobs)
