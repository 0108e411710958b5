"""A sampling planner, to compare others with: RRT-Connect and shortcuts, in NumPy.

It knows robots and obstacles by one function alone, which says whether the straight lines from
point to point, [P + 1, size + 1], are free. A point is a place and a time; earlier ones come first.
"""

import itertools
from collections.abc import Callable

import numpy as np

Free = Callable[[np.ndarray], bool]


class Tree:
    """Points, and how each was reached.

    Args:
      root: [size + 1].
      sign: 1 where its lines lead on in time, -1 where they lead back.
    """

    def __init__(self, root: np.ndarray, sign: int) -> None:
        self.points, self.parents, self.sign = root[None], [-1], sign

    def nearest(self, point: np.ndarray, speed: float | None) -> int | None:
        """The node that is nearest to a point; where things move it must also be possible to get
        there from it in time, and time counts as the way that could be gone in it."""
        change = point - self.points
        distance = np.linalg.norm(change[:, :-1], axis=1)
        if speed is not None:
            way = speed * self.sign * change[:, -1]
            distance = np.where((way > 0) & (distance <= way), np.hypot(distance, way), np.inf)
        found = int(distance.argmin())
        return found if distance[found] < np.inf else None

    def extend(self, node: int, point: np.ndarray, step: float, free: Free) -> int | None:
        """A new node, from one towards a point, one step away at most; None where it is blocked."""
        begin = self.points[node]
        length = np.linalg.norm((point - begin)[:-1])
        end = point if length <= step else begin + (point - begin) * (step / length)
        if not free(np.stack([begin, end])[::self.sign]):
            return None
        self.points = np.concatenate([self.points, end[None]])
        self.parents.append(node)
        return len(self.points) - 1

    def branch(self, node: int) -> list[np.ndarray]:
        """The points from a node to the root."""
        found = []
        while node >= 0:
            found.append(self.points[node])
            node = self.parents[node]
        return found


def rrt_connect(start: np.ndarray, goal: np.ndarray, limit: float, speed: float | None,
                free: Free, random: np.random.Generator, *, step: float,
                samples: int) -> list[np.ndarray] | None:
    """A path from start to goal: points [size + 1], or None if none was found. Two trees grow
    towards random points in turns, by a step, and the other one then towards what is new until it
    gets there or is blocked (Kuffner & LaValle 2000, https://doi.org/10.1109/ROBOT.2000.844730).

    Where things move the tree of the start leads on in time, and that of the goal back.

    Args:
      start: a place at its time.
      goal: the same.
      limit: numbers of a place are between -limit and limit.
      speed: the largest norm of a change of place over its time; None where nothing moves, and both
        times are the same.
      free: see above; lines are no longer than a step.
      random: where random numbers come from.
      step: norm of a line's change of place, at most.
      samples: random points, at most.
    """
    trees = [Tree(start, 1), Tree(goal, -1)]
    for i in range(samples):
        one, other = trees[i % 2], trees[1 - i % 2]
        place = random.uniform(-limit, limit, len(start) - 1)
        time = start[-1]
        if speed is not None:
            early, late = (end[-1] + sign * np.linalg.norm(place - end[:-1]) / speed
                           for end, sign in ((start, 1), (goal, -1)))
            if early >= late:
                continue
            time = random.uniform(early, late)
        point = np.append(place, time)
        node = one.nearest(point, speed)
        new = None if node is None else one.extend(node, point, step, free)
        if new is None:
            continue
        point = one.points[new]
        reached = other.nearest(point, speed)
        while reached is not None and (other.points[reached] != point).any():
            reached = other.extend(reached, point, step, free)
        if reached is not None:
            halves = one.branch(new)[::-1], other.branch(reached)[1:]
            path = [*halves[0], *halves[1]]
            return path if one.sign == 1 else path[::-1]
    return None


def shortened(path: list[np.ndarray], free: Free, random: np.random.Generator, *, step: float,
              times: int) -> list[np.ndarray]:
    """The path after so many attempts to replace what lies between two random points of it by the
    straight line, which is never longer nor faster."""
    for _ in range(times):
        lengths = [np.linalg.norm((b - a)[:-1]) for a, b in itertools.pairwise(path)]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        places = np.sort(random.uniform(0, ends[-1], 2))
        i, j = np.clip(np.searchsorted(ends, places, "right") - 1, 0, len(lengths) - 1)
        if i == j:
            continue
        a, b = (path[k] + (path[k + 1] - path[k]) * (at - ends[k]) / max(lengths[k], 1e-12)
                for k, at in zip((i, j), places, strict=True))
        parts = max(1, int(np.ceil(np.linalg.norm((b - a)[:-1]) / step)))
        if free(a + np.linspace(0, 1, parts + 1)[:, None] * (b - a)):
            path = [*path[:i + 1], a, b, *path[j + 1:]]
    return path


def length(path: list[np.ndarray]) -> float:
    """The sum of the norms of the changes of place."""
    return float(np.linalg.norm(np.diff(np.stack(path), axis=0)[:, :-1], axis=1).sum())
