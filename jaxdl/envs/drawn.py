"""Pictures of robots among discs."""


import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.envs.frames import FINE, Canvas
from jaxdl.envs.robots import Robot, Scene

TIMES = (0., 0.2, 0.4, 0.6, 0.8, 1.)
HEADS = ("all of it", *(f"time {time:g}" for time in TIMES))
GHOSTS = 24  # poses of all of a motion
INK, REST, MOVES = (33, 37, 41), (173, 181, 189), (233, 166, 84)
TRAIL, TARGET, FIRST, LAST = (250, 234, 214), (178, 223, 178), (28, 95, 168), (47, 158, 68)
EDGE = (222, 226, 230)


def strip(robot: Robot, scene: Scene, place: np.ndarray, view: float, size: int) -> np.ndarray:
    """Panels [1 + len(TIMES), size, size, 3] in [0, 1] of a motion, poses [M + 1, size of a place]:
    first all of it, from blue to green, with the ways of the discs that move; then some times, each
    with the goal in light green.

    Args:
      robot: as it was planned for, its floats known.
      scene: of the same.
      place: the poses, evenly from time 0 to time 1.
      view: what is shown, in units of the plane: from -view to view.
      size: of a panel, in pixels.
    """
    scene = jax.tree.map(np.asarray, scene)
    last = len(place) - 1
    begin, end = map(np.asarray, jax.vmap(robot.body)(jnp.asarray(place)))
    spread = np.linspace(0, 1, GHOSTS)
    whole = Panel(view, size=size)
    whole.discs(scene, None)
    for time in spread:
        colour = tuple(int(a + (b - a) * time) for a, b in zip(FIRST, LAST, strict=True))
        k = round(time * last)
        whole.capsules(begin[k], end[k], float(robot.thickness) / 2, colour)
    panels = [whole]
    for time in TIMES:
        panel, k = Panel(view, size=size), round(time * last)
        panel.capsules(begin[-1], end[-1], float(robot.thickness), TARGET)
        panel.discs(scene, time)
        panel.capsules(begin[k], end[k], float(robot.thickness), FIRST)
        panel.disc(begin[k, 0], float(robot.thickness) / 2, INK)
        panels.append(panel)
    return np.stack([panel.pixels() for panel in panels])


class Panel(Canvas):
    """A picture of robots and discs."""

    def capsules(self, begin: np.ndarray, end: np.ndarray, radius: float,
                 colour: tuple[int, ...]) -> None:
        """Around lines between points [N, 2]."""
        for a, b in zip(begin, end, strict=True):
            self.line(a, b, colour=colour, width=2 * radius)
            self.disc(a, radius, colour)
            self.disc(b, radius, colour)

    def discs(self, scene: Scene, time: float | None) -> None:
        """At a time; None shows where they begin, and their ways."""
        discs = list(zip(*map(np.asarray, (scene.centre, scene.velocity, scene.radius)),
                         strict=True))
        for centre, velocity, radius in discs if time is None else ():
            if velocity.any():
                self.capsules(centre[None], (centre + velocity)[None], float(radius), TRAIL)
        for centre, velocity, radius in discs:
            self.disc(centre + (time or 0.) * velocity, float(radius),
                      MOVES if velocity.any() else REST)

    def pixels(self) -> np.ndarray:
        """What was drawn, in a frame."""
        edge = FINE * self.size - 1
        self.draw.rectangle((0, 0, edge, edge), outline=EDGE, width=FINE)
        return super().pixels()
