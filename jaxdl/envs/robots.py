"""Robots in the plane and scenes of discs that they have to get through: kinematics, distances, and
what is proven of the poses between two others.

A motion lasts from time 0 to time 1. All functions are of one robot in one scene, pure and
differentiable; a task maps them over many.
"""

from dataclasses import dataclass
from typing import Annotated, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxdl.config import Between, Fraction, NonNegative

Array = jax.Array

CANDIDATES = 128  # discs that a scene is chosen from
ATTEMPTS = 8  # starts, ways and goals, the first of which that is not trivial counts
POSES = 64  # of a motion, to choose them by
AWAY = 100.  # where a disc is that has found no place


class Motion(NamedTuple):
    """Where a robot is and how fast it changes, [..., size] each."""

    place: Array
    velocity: Array


class Robot(Protocol):
    """What moves. A place is a vector of numbers between -limit and limit; the body there is made
    of capsules: all points within `thickness` of a line from one end to the other."""

    @property
    def size(self) -> int:
        """Of a place, and of a control."""
        ...

    @property
    def limit(self) -> float: ...

    @property
    def speed(self) -> float:
        """The largest norm of a velocity."""
        ...

    @property
    def thickness(self) -> float: ...

    def body(self, place: Array) -> tuple[Array, Array]:
        """The two ends of each capsule, [L, 2] each."""
        ...

    def sweep(self, change: Array) -> Array:
        """How far points of each capsule go, at most, while the place changes evenly: [L]."""
        ...

    def move(self, motion: Motion, control: Array, time: Array | float) -> Motion:
        """After a time under one control; linear in motion and control."""
        ...

    def missed(self, motion: Motion, goal: Array) -> Array:
        """What must be zero for the motion to have ended at the goal."""
        ...

    def detour(self, by: Array, time: Array) -> Array:
        """A control [size] at a time, which leads the robot off by so much in the middle of its
        motion and back again."""
        ...


@dataclass(frozen=True, kw_only=True)
class PointMass:
    """A disc in a square that is accelerated: its controls are accelerations, and it is at rest in
    the beginning and in the end.

    Attributes:
      thickness: its radius.
      limit: half the side of the square, for its centre.
      speed: that it may have.
    """

    thickness: NonNegative = 0.03
    limit: NonNegative = 1.
    speed: NonNegative = 10.

    @property
    def size(self) -> int:
        return 2

    def body(self, place: Array) -> tuple[Array, Array]:
        return place[None], place[None]

    def sweep(self, change: Array) -> Array:
        return jnp.linalg.norm(change)[None]

    def move(self, motion: Motion, control: Array, time: Array | float) -> Motion:
        return Motion(motion.place + time * motion.velocity + time ** 2 / 2 * control,
                      motion.velocity + time * control)

    def missed(self, motion: Motion, goal: Array) -> Array:
        return jnp.concatenate([motion.place - goal, motion.velocity])

    def detour(self, by: Array, time: Array) -> Array:
        return 2 * jnp.pi ** 2 * by * jnp.cos(2 * jnp.pi * time)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A chain of links in the plane, fixed at the origin. A place is the angle of each joint, in
    radians, from the direction of the link before; its controls are their velocities. The links lie
    at different heights: they pass over one another, but not over a disc.

    Attributes:
      links: their lengths.
      thickness: half their width.
      limit: of the angles, to both sides.
      speed: norm of the angles' velocities.
    """

    links: tuple[Annotated[float, Between(0)], ...] = (0.4, 0.3, 0.3)
    thickness: NonNegative = 0.02
    limit: NonNegative = 2.5
    speed: NonNegative = 20.

    @property
    def size(self) -> int:
        return len(self.links)

    def body(self, place: Array) -> tuple[Array, Array]:
        angle = jnp.cumsum(place)
        link = jnp.asarray(self.links)[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1)
        end = jnp.cumsum(link, 0)
        return end - link, end

    def sweep(self, change: Array) -> Array:
        return jnp.cumsum(jnp.asarray(self.links) * jnp.abs(jnp.cumsum(change)))

    def move(self, motion: Motion, control: Array, time: Array | float) -> Motion:
        return Motion(motion.place + time * control, control)

    def missed(self, motion: Motion, goal: Array) -> Array:
        return motion.place - goal

    def detour(self, by: Array, time: Array) -> Array:
        return jnp.pi * by * jnp.cos(jnp.pi * time)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scene:
    """What a robot has to do.

    Attributes:
      start: its place at time 0, [size].
      goal: that at time 1.
      centre: of each disc at time 0, [K, 2].
      velocity: of the discs, [K, 2]; zero of those that rest.
      radius: [K].
    """

    start: Array
    goal: Array
    centre: Array
    velocity: Array
    radius: Array


def clearance(robot: Robot, scene: Scene, place: Array, time: Array | float) -> Array:
    """The distance of each capsule of a robot to each disc at a time, [L, K]; negative where they
    overlap, by how far the disc reaches over the capsule's line less its thickness."""
    begin, end = robot.body(place)
    centre = scene.centre + time * scene.velocity
    # Without an axis for the plane: jaxlib 0.10 crashes on CPU where it is the seventh of all.
    x, y = (centre[:, i] - begin[:, i, None] for i in (0, 1))  # [L, K] each
    u, v = ((end - begin)[:, i, None] for i in (0, 1))  # [L, 1] each
    along = jnp.clip((x * u + y * v) / jnp.maximum(u ** 2 + v ** 2, 1e-12), 0, 1)
    # The root of zero has no gradient.
    distance = jnp.sqrt((x - along * u) ** 2 + (y - along * v) ** 2 + 1e-12)
    return distance - scene.radius - robot.thickness


def proven(robot: Robot, scene: Scene, place: Array, time: Array, travel: Array) -> Array:
    """A bound from below on the clearance of a whole motion: between two poses a capsule comes
    nearer to a disc by no more than both of them travel, so where the distances are a before and b
    after, and they travel by d together, it is nowhere less than (a + b - d) / 2.

    Args:
      place: poses [M + 1, size].
      time: of each, [M + 1].
      travel: how far points of each capsule go between two poses, at most, [M, L].
    """
    distance = jax.vmap(lambda place, time: clearance(robot, scene, place, time))(place, time)
    discs = jnp.diff(time)[:, None] * jnp.linalg.norm(scene.velocity, axis=-1)  # [M, K]
    return (distance[:-1] + distance[1:] - travel[..., None] - discs[:, None]).min() / 2


def line(robot: Robot, scene: Scene, places: Array, times: Array, pieces: int) -> Array:
    """What is proven of the straight lines from pose to pose, [P + 1, size] at times [P + 1], each
    looked at in `pieces` pieces."""
    def between(x: Array) -> Array:
        part = jnp.arange(pieces) / pieces
        wide = part.reshape(-1, *(1,) * (x.ndim - 1))
        steps = x[:-1, None] + wide * jnp.diff(x, axis=0)[:, None]
        return jnp.concatenate([steps.reshape(-1, *x.shape[1:]), x[-1:]])

    place = between(places)
    return proven(robot, scene, place, between(times),
                  jax.vmap(robot.sweep)(jnp.diff(place, axis=0)))


def within(robot: Robot, motion: Motion) -> Array:
    """Whether a motion of poses [M + 1, size] keeps the robot's limits, between them as well: where
    a number turns back it has gone on by v^2 / 2 over its acceleration."""
    place, velocity = jnp.abs(motion.place), motion.velocity
    before, after = velocity[:-1], velocity[1:]
    far = jnp.square(before) / jnp.maximum(jnp.abs(before - after), 1e-12) / (2 * len(before))
    turned = place[:-1] + jnp.where(before * after < 0, far, 0)
    # A speed is nowhere larger than at one of the poses.
    return ((jnp.maximum(place.max(), turned.max()) <= robot.limit)
            & (jnp.linalg.norm(velocity, axis=-1).max() <= robot.speed))


def rollout(robot: Robot, start: Array, controls: Array) -> Motion:
    """The simulator: where the robot is, from rest, under controls [T, size] of 1 / T each:
    [T + 1, size]."""
    def one(motion: Motion, control: Array) -> tuple[Motion, Motion]:
        after = robot.move(motion, control, 1 / len(controls))
        return after, after

    rest = Motion(start, jnp.zeros_like(start))
    _, rows = jax.lax.scan(one, rest, controls)
    return jax.tree.map(lambda first, rows: jnp.concatenate([first[None], rows]), rest, rows)


def finer(robot: Robot, motion: Motion, controls: Array, pieces: int) -> Motion:
    """A motion [T + 1, size] with `pieces` times as many poses, the same simulated in between."""
    def one(motion: Motion, control: Array) -> Motion:
        time = (jnp.arange(pieces) + 1) / (pieces * len(controls))
        return jax.vmap(lambda t: robot.move(motion, control, t))(time)

    rows = jax.vmap(one)(jax.tree.map(lambda x: x[:-1], motion), controls)
    return jax.tree.map(lambda x, rows: jnp.concatenate([x[:1], rows.reshape(-1, x.shape[-1])]),
                        motion, rows)


def reaching(robot: Robot, scene: Scene, controls: Array) -> Array:
    """The controls [T, size] nearest to these that lead to the goal. The end depends linearly on
    them, so its derivative, through the simulator, gives them in one step."""
    def end(start: Array, goal: Array, controls: Array) -> Array:
        last = jax.tree.map(lambda x: x[-1], rollout(robot, start, controls))
        return robot.missed(last, goal)

    origin = jnp.zeros_like(scene.start)
    slope = jax.jacrev(end, 2)(origin, origin, jnp.zeros_like(controls))
    slope = slope.reshape(len(slope), -1)
    missed = end(scene.start, scene.goal, controls)
    back = slope.T @ jnp.linalg.solve(slope @ slope.T, missed)
    return controls - back.reshape(controls.shape)


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """Random scenes, each of which has a solution: start, goal and a place to pass on the way are
    random, and of the discs that are drawn those are kept which leave that way free. The first of
    them stands in the way of the straight line from start to goal, for all but the few scenes where
    no disc that was drawn does.

    Attributes:
      robot: that has to get through.
      discs: in a scene.
      smallest: radius of a disc.
      largest: the same.
      moving: share of scenes whose discs move, each in its direction; in others they rest.
      speed: of a disc that moves, at most.
      room: clearance of the way that is left free.
      reach: the middles of the discs at time 1/2 are between -reach and reach.
    """

    robot: Robot
    discs: Annotated[int, Between(1, CANDIDATES)] = 8
    smallest: NonNegative = 0.05
    largest: NonNegative = 0.15
    moving: Fraction = 0.5
    speed: NonNegative = 0.5
    room: NonNegative = 0.03
    reach: NonNegative = 1.

    def draw(self, key: Array) -> Scene:
        """The scene of a key."""
        keys = jax.random.split(key, 4)
        middle = self.reach * jax.random.uniform(keys[0], (CANDIDATES, 2), minval=-1)
        angle, size, fast = jax.random.uniform(keys[1], (3, CANDIDATES))
        way = jnp.stack([jnp.cos(2 * jnp.pi * angle), jnp.sin(2 * jnp.pi * angle)], -1)
        moves = jax.random.uniform(keys[2]) < self.moving
        velocity = jnp.where(moves, self.speed * fast[:, None] * way, 0)
        radius = self.smallest + size * (self.largest - self.smallest)
        robot, time = self.robot, jnp.linspace(0, 1, POSES)

        def nearest(scene: Scene, *places: Array) -> Array:
            """How near each disc comes to the motion from place to place, [CANDIDATES]."""
            at = jnp.linspace(0, 1, len(places))
            poses = jax.vmap(lambda x: jnp.interp(time, at, x), 1, 1)(jnp.stack(places))
            return jax.vmap(lambda q, t: clearance(robot, scene, q, t))(poses, time).min((0, 1))

        def attempt(key: Array) -> tuple[Scene, Array]:
            start, by, goal = robot.limit * jax.random.uniform(key, (3, robot.size), minval=-1)
            scene = Scene(start, goal, middle - velocity / 2, velocity, radius)
            free = nearest(scene, start, by, goal) > self.room
            blocks = free & (nearest(scene, start, goal) < 0)
            first = jnp.arange(CANDIDATES) == blocks.argmax()
            order = jnp.argsort(jnp.where(free, jnp.where(first, 0, 1), 2), stable=True)
            chosen = order[:self.discs]
            centre = jnp.where(free[chosen, None], scene.centre[chosen], AWAY)
            return Scene(start, goal, centre, velocity[chosen], radius[chosen]), blocks.any()

        scenes, blocked = jax.vmap(attempt)(jax.random.split(keys[3], ATTEMPTS))
        return jax.tree.map(lambda x: x[blocked.argmax()], scenes)
