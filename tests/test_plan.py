"""Motion planning: kinematics and distances against NumPy, what is proven against what is seen, the
planner where the answer is known, and the sampling planner's paths against brute force."""

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from jaxdl import cli, config, rrt
from jaxdl.envs.drawn import HEADS, strip
from jaxdl.envs.robots import (
    Arm,
    Motion,
    PointMass,
    Robot,
    Scene,
    Scenes,
    clearance,
    finer,
    line,
    reaching,
    rollout,
    within,
)
from jaxdl.errors import UserError
from jaxdl.pictures import Material
from jaxdl.plans import Plans
from jaxdl.tasks.plan import Plan
from tests import tiny
from tests.promises import resumes

ROOT = Path(__file__).parent.parent
KEY = jax.random.key(0)
ARM, MASS = Arm(links=(0.5, 0.3, 0.2)), PointMass()
ROBOTS = pytest.mark.parametrize("robot", [ARM, MASS], ids=["arm", "mass"])
RANDOM = np.random.default_rng(0)


def scene_of(start: Any, goal: Any, centre: Any = ((5., 5.),), velocity: Any = ((0., 0.),),
             radius: Any = (0.1,)) -> Scene:
    return Scene(*(jnp.asarray(x, jnp.float32) for x in (start, goal, centre, velocity, radius)))


def brute(robot: Robot, scene: Scene, place: np.ndarray, time: float) -> np.ndarray:
    """Distances [L, K] by many points of each capsule's line, in NumPy."""
    if isinstance(robot, Arm):
        angle = np.cumsum(place)
        links = np.asarray(robot.links)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        ends = np.concatenate([np.zeros((1, 2)), np.cumsum(links, 0)])
    else:
        ends = np.stack([place, place])
    part = np.linspace(0, 1, 1_001)[:, None, None]
    points = ends[:-1] + part * np.diff(ends, axis=0)  # [P, L, 2]
    centre = np.asarray(scene.centre) + time * np.asarray(scene.velocity)
    away = np.linalg.norm(points[:, :, None] - centre, axis=-1).min(0)
    return away - np.asarray(scene.radius) - float(robot.thickness)


def discs(count: int) -> dict[str, np.ndarray]:
    return {"centre": RANDOM.uniform(-1, 1, (count, 2)),
            "velocity": RANDOM.uniform(-0.5, 0.5, (count, 2)),
            "radius": RANDOM.uniform(0.05, 0.2, count)}


def test_the_arm_is_where_trigonometry_says() -> None:
    begin, end = ARM.body(jnp.array([jnp.pi / 2, -jnp.pi / 2, jnp.pi]))
    np.testing.assert_allclose(begin, [[0, 0], [0, 0.5], [0.3, 0.5]], atol=1e-6)
    np.testing.assert_allclose(end, [[0, 0.5], [0.3, 0.5], [0.1, 0.5]], atol=1e-6)


@ROBOTS
def test_distances_against_brute_force(robot: Robot) -> None:
    scene = scene_of(np.zeros(robot.size), np.zeros(robot.size), **discs(6))
    find = jax.jit(lambda q, t: clearance(robot, scene, q, t))
    for _ in range(10):
        place, time = RANDOM.uniform(-2, 2, robot.size).astype(np.float32), RANDOM.random()
        np.testing.assert_allclose(find(place, time), brute(robot, scene, place, time), atol=1e-3)


@ROBOTS
def test_no_point_goes_further_than_is_said(robot: Robot) -> None:
    for _ in range(10):
        a, change = RANDOM.uniform(-2, 2, (2, robot.size))
        poses = [jnp.asarray(a + part * change) for part in np.linspace(0, 1, 50)]
        ways = np.zeros(len(robot.sweep(poses[0])))
        for one, other in itertools.pairwise(poses):  # The ends of a link go furthest.
            ways += np.maximum(*(np.linalg.norm(np.asarray(x) - np.asarray(y), axis=-1)
                                 for x, y in zip(robot.body(one), robot.body(other), strict=True)))
        assert (ways <= np.asarray(robot.sweep(jnp.asarray(change))) + 1e-5).all()


@ROBOTS
def test_what_is_proven_is_less_than_what_is_seen(robot: Robot) -> None:
    """Less than the least distance of a much finer look, and by little where the look is fine."""
    times, fine = jnp.array([0., 0.3, 1.]), np.linspace(0, 1, 2_001)
    coarse, near = (jax.jit(lambda scene, places, n=n: line(robot, scene, places, times, n))
                    for n in (4, 512))
    look = jax.jit(jax.vmap(lambda scene, q, t: clearance(robot, scene, q, t).min(), (None, 0, 0)))
    for _ in range(5):
        places = RANDOM.uniform(-1.5, 1.5, (3, robot.size)).astype(np.float32)
        scene = scene_of(places[0], places[2], **discs(4))
        poses = np.stack([np.interp(fine, times, x) for x in places.T], 1)
        seen = float(look(scene, poses, fine).min())
        assert coarse(scene, places) < near(scene, places) <= seen + 1e-5
        assert float(near(scene, places)) == pytest.approx(seen, abs=0.02)


@ROBOTS
def test_controls_are_made_to_reach_the_goal(robot: Robot) -> None:
    start, goal = RANDOM.uniform(-1, 1, (2, robot.size))
    scene = scene_of(start, goal)
    controls = jnp.asarray(RANDOM.normal(size=(12, robot.size)), jnp.float32)
    made = jax.jit(lambda c: reaching(robot, scene, c))(controls)
    motion = rollout(robot, scene.start, made)
    np.testing.assert_allclose(motion.place[0], start, atol=1e-6)
    np.testing.assert_allclose(motion.place[-1], goal, atol=1e-5)
    if isinstance(robot, PointMass):
        np.testing.assert_allclose(motion.velocity[-1], 0, atol=1e-5)
    np.testing.assert_allclose(reaching(robot, scene, made), made, atol=1e-5)
    # The nearest ones: the change is at right angles to whatever does not move the end.
    other = reaching(robot, scene, controls[::-1]) - made
    assert float(((made - controls) * other).sum()) == pytest.approx(0, abs=1e-3)
    fine = finer(robot, motion, made, 5)
    np.testing.assert_allclose(fine.place[::5], motion.place, atol=1e-5)
    assert fine.place.shape == (61, robot.size)


def test_a_mass_falls_as_it_should() -> None:
    motion = rollout(MASS, jnp.array([0., 1.]), jnp.tile(jnp.array([0., -9.81]), (8, 1)))
    time = np.linspace(0, 1, 9)
    np.testing.assert_allclose(motion.place[:, 1], 1 - 9.81 * time ** 2 / 2, rtol=1e-5)
    np.testing.assert_allclose(motion.velocity[:, 1], -9.81 * time, rtol=1e-5)


@ROBOTS
def test_the_gradient_against_finite_differences(robot: Robot) -> None:
    """Through the simulator, the hinge and the limits, all of which the motion is near."""
    near: Any = robot
    random = np.random.default_rng(0)
    task = Plan(scenes=Scenes(robot=dataclasses.replace(near, limit=0.5, speed=1.)), steps=6,
                margin=0.1, obstacle=10.)
    size = robot.size
    scene = scene_of(np.zeros(size), np.full(size, 0.8), centre=((0.45, 0.3), (0.2, -0.5)),
                     velocity=((0.1, 0.), (0., 0.3)), radius=(0.1, 0.2))
    controls = jnp.asarray(random.normal(size=(6, size)), jnp.float32)
    cost = jax.jit(lambda c: task.cost(scene, c)[0])
    _, metrics = task.cost(scene, controls)
    assert metrics["touch"] > 0
    gradient = jax.jit(jax.grad(cost))(controls)
    for _ in range(4):
        way = jnp.asarray(random.normal(size=(6, size)), jnp.float32)
        found = (cost(controls + 3e-3 * way) - cost(controls - 3e-3 * way)) / 6e-3
        assert float(found) == pytest.approx(float((gradient * way).sum()), rel=2e-2, abs=2e-2)


def test_a_limit_counts_between_poses() -> None:
    # It is back after 1, and was v^2 / 2 / 8 high.
    thrown = Motion(jnp.zeros(2), jnp.asarray([4., 0]))

    def moved(times: jax.Array) -> Motion:
        return jax.vmap(lambda t: MASS.move(thrown, jnp.asarray([-8., 0]), t))(times)

    poses = moved(jnp.asarray([0., 1]))
    np.testing.assert_allclose(poses.place, 0, atol=1e-6)
    assert float(moved(jnp.linspace(0, 1, 101)).place.max()) == pytest.approx(1)
    assert within(PointMass(limit=1.01), poses)
    assert not within(PointMass(limit=0.99), poses)
    assert not within(PointMass(limit=1.01, speed=3.9), poses)


@ROBOTS
def test_scenes_have_a_start_and_a_goal_and_are_not_trivial(robot: Robot) -> None:
    drawn = Scenes(robot=robot, discs=10, moving=0.5)
    scenes = jax.jit(jax.vmap(drawn.draw))(jax.random.split(KEY, 40))
    ends = jax.jit(jax.vmap(lambda s: jnp.minimum(clearance(robot, s, s.start, 0.).min(),
                                                  clearance(robot, s, s.goal, 1.).min())))(scenes)
    assert (ends > drawn.room - 1e-5).all()
    straight = jax.jit(jax.vmap(lambda s: line(robot, s, jnp.stack([s.start, s.goal]),
                                               jnp.arange(2.), 512)))(scenes)
    assert (straight > 0).mean() < 0.2
    moving = np.asarray(scenes.velocity).any((1, 2))
    assert 0.25 < moving.mean() < 0.75
    assert (np.linalg.norm(scenes.velocity, axis=-1) <= drawn.speed).all()
    assert (np.abs(scenes.centre) < 2).all()  # Each disc has found its place.
    assert ((scenes.radius >= drawn.smallest) & (scenes.radius <= drawn.largest)).all()
    rest = dataclasses.replace(drawn, moving=0.)
    assert not jax.jit(rest.draw)(KEY).velocity.any()


def planned(task: Plan, scene: Scene, steps: int) -> Any:
    """Answers in one scene."""
    batch, tx = {"mask": jnp.ones(1)}, optax.adam(optax.cosine_decay_schedule(0.1, steps))

    def run() -> Any:
        scenes = jax.tree.map(lambda x: x[None], scene)
        state = task.init(KEY, batch, tx)
        params = jax.vmap(task.guessed)(scenes, jax.random.split(KEY, 1))
        state = dataclasses.replace(state, scenes=scenes, params=params)
        state = jax.lax.fori_loop(0, steps, lambda _, s: task.step(s, batch, tx)[0], state)
        return task.answers(state, 16)

    return jax.device_get(jax.jit(run)())


def test_it_finds_the_way_round_a_disc() -> None:
    """Two tangents and an arc between them are the shortest way round."""
    task = Plan(scenes=Scenes(robot=PointMass(thickness=0.05)), steps=48, guesses=4, margin=0.02)
    found = planned(task, scene_of((-0.8, 0.), (0.8, 0.), ((0., 0.),), radius=(0.25,)), 200)
    r, d = 0.3, 0.8
    shortest = 2 * (np.sqrt(d ** 2 - r ** 2) + r * np.arcsin(r / d))
    assert found.found[0] and found.clearance[0] > 0
    assert shortest - 1e-3 <= found.length[0] < 1.02 * shortest
    distance = np.linalg.norm(found.place[0], axis=-1).min()
    assert distance >= 0.3 and found.clearance[0] <= distance - 0.3 + 1e-5


def test_it_goes_straight_where_nothing_is_in_the_way() -> None:
    task = Plan(scenes=Scenes(robot=ARM), steps=16, guesses=2)
    found = planned(task, scene_of((0., 0., 0.), (1., -1., 0.5)), 100)
    assert found.found[0] and found.length[0] == pytest.approx(1.5, rel=1e-3)


def test_it_waits_for_what_moves() -> None:
    """A disc crosses the straight way; the motion is free at the times at which it is there."""
    task = Plan(scenes=Scenes(robot=PointMass()), steps=48, guesses=4)
    scene = scene_of((-0.8, 0.), (0.8, 0.), ((0., -0.5),), ((0., 1.),), (0.2,))
    found = planned(task, scene, 150)
    assert found.found[0]
    place, time = found.place[0], np.linspace(0, 1, len(found.place[0]))
    centre = np.array([0., -0.5]) + time[:, None] * np.array([0., 1.])
    assert (np.linalg.norm(place - centre, axis=-1) > 0.23).all()
    assert np.linalg.norm(place, axis=-1).min() < 0.43  # It needs no way round where it was.


def test_limits_count() -> None:
    """A motion that leaves the limits, or is too fast, is no answer."""
    scene = scene_of((-0.8, 0.), (0.8, 0.))
    for changes in ({"limit": 0.7}, {"speed": 1.5}):
        task = Plan(scenes=Scenes(robot=PointMass(**changes)), steps=8, guesses=1)
        found = planned(task, scene, 1)
        assert not found.found[0] and found.clearance[0] > 0


@ROBOTS
@pytest.mark.parametrize("moves", [False, True])
def test_paths_of_the_sampling_planner_touch_nothing(robot: Robot, moves: bool) -> None:
    drawn = Scenes(robot=robot, discs=12, moving=float(moves))
    scene = jax.jit(drawn.draw)(jax.random.key(3))
    check = jax.jit(lambda x: line(robot, scene, x[:, :-1], x[:, -1], 64) > 0)
    seen: list[Any] = []

    def free(points: np.ndarray) -> bool:
        seen.append(points)
        return bool(check(jnp.asarray(points, jnp.float32)))

    start, goal = np.append(scene.start, 0.), np.append(scene.goal, float(moves))
    speed = 20. if moves else None
    path = rrt.rrt_connect(start, goal, robot.limit, speed, free, np.random.default_rng(0),
                           step=0.4, samples=3_000)
    assert path is not None
    for points in seen:  # Discs are where they are at these times.
        assert (np.diff(points[:, -1]) >= 0).all()
        assert (np.linalg.norm(np.diff(points, axis=0)[:, :-1], axis=1) < 0.4 + 1e-6).all()
    short = rrt.shortened(path, free, np.random.default_rng(0), step=0.4, times=60)
    assert np.linalg.norm((goal - start)[:-1]) <= rrt.length(short) < rrt.length(path)
    for points in (path, short):
        np.testing.assert_allclose(points[0], start)
        np.testing.assert_allclose(points[-1], goal)
        for a, b in itertools.pairwise(points):
            assert np.linalg.norm((b - a)[:-1]) <= (20 * (b - a)[-1] + 1e-6 if moves else np.inf)
            for part in np.linspace(0, 1, 10):
                at = a + part * (b - a)
                assert brute(robot, scene, at[:-1], at[-1]).min() > 0
                assert (np.abs(at[:-1]) <= robot.limit).all()


def test_where_there_is_no_way_there_is_no_path() -> None:
    point = np.zeros(3)
    assert rrt.rrt_connect(point, point + 1, 2., None, lambda points: False,
                           np.random.default_rng(0), step=0.3, samples=50) is None
    hurried = np.array([1., 0., 1.])  # In one unit of time, at half the speed that it takes.
    assert rrt.rrt_connect(point, hurried, 2., 0.5, lambda points: True, np.random.default_rng(0),
                           step=0.3, samples=50) is None


FILE = '''
from jaxdl.data.nothing import Nothing
from jaxdl.envs.robots import Arm, Scenes
from jaxdl.experiment import Experiment, Mesh
from jaxdl.optimizer import Adam, Cosine
from jaxdl.plans import Plans
from jaxdl.tasks.plan import Plan

def config():
    return Experiment(
        task=Plan(scenes=Scenes(robot=Arm(links=(0.5, 0.5)), discs=6), steps=48, guesses=16),
        data=Nothing(), optimizer=Adam(learning_rate=Cosine(peak=0.1)),
        evals={"test": Plans(every=60, attempts=2, shortcuts=40, shown=2)},
        steps=60, batch_size=8, log_every=20, save_every=5, mesh=Mesh(data=1))
'''


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    (tmp_path / "tiny_plan.py").write_text(FILE)
    return f"--experiment={tmp_path / 'tiny_plan.py'}"


def test_its_motions_beside_those_of_the_sampling_planner(experiment: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cli.main([experiment, f"--workdir={run}"]) == 0
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    found = next(x for x in lines if "test/length" in x)
    assert found["test/collision_free"] >= 0.75 and found["test/sampled_free"] >= 0.75
    assert 0.8 < found["test/length_ratio"] < 1.2
    assert found["test/straight_free"] <= 0.25
    picture = np.asarray(Image.open(run / "plans" / "test_0000060.png"))
    assert picture.shape == (2 * 201 - 1, len(HEADS) * 201 - 1, 3)


def test_it_resumes_bit_exactly(experiment: str, tmp_path: Path) -> None:
    resumes(experiment, tmp_path, 6,
            "--batch_size=2", "--evals.test.samples=20", "--evals.test.attempts=1")


def test_seeds_and_floats_are_one_program(experiment: str, tmp_path: Path, programs: list[int],
                                          capfd: pytest.CaptureFixture[str]) -> None:
    sweep, little = tmp_path / "sweep", ["--steps=6", "--batch_size=4", "--log_every=1",
                                         "--evals.test.samples=300", "--evals.test.attempts=1"]
    assert cli.main(["sweep", experiment, "--over", "seed=0,1", "--over",
                     "task.scenes.robot.thickness=0.02,0.05", "--metric=test/collision_free",
                     "--executor=vmap", *little, f"--workdir={sweep}"]) == 0
    assert "4 done" in capfd.readouterr().out and set(programs) == {4}
    alone = tmp_path / "alone"
    assert cli.main([experiment, "--seed=1", "--task.scenes.robot.thickness=0.05", *little,
                     f"--workdir={alone}"]) == 0

    def numbers(folder: Path, name: str) -> list[float]:
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        return [x[name] for x in lines if name in x]

    def is_it(folder: Path) -> bool:
        tree = json.loads((folder / "config.json").read_text())["experiment"]
        return (tree["seed"], tree["task"]["scenes"]["robot"]["thickness"]) == (1, 0.05)

    trial = next(path for path in sorted((sweep / "trials").iterdir()) if is_it(path))
    assert numbers(trial, "train/loss") == pytest.approx(numbers(alone, "train/loss"), rel=1e-3)
    assert numbers(trial, "test/sampled_length") == pytest.approx(
        numbers(alone, "test/sampled_length"), rel=1e-3)


def test_a_report_shows_the_motions() -> None:
    task = Plan(scenes=Scenes(robot=ARM, discs=3), steps=8, guesses=2)
    state = jax.jit(lambda: task.init(KEY, {"mask": jnp.ones(2)}, optax.adam(0.1)))()
    shown: Any
    (shown,) = task.pictures(state, Material(source=lambda split: None, split="test",  # type: ignore
                                             batch_size=2))
    assert shown.images.shape == (2 * len(HEADS), 112, 112, 3) and shown.heads == HEADS


def test_a_picture_has_the_arm_and_the_discs_where_they_are() -> None:
    scene = scene_of((0., 0., 0.), (jnp.pi / 2, 0., 0.), ((-0.5, 0.), (0., -0.8)),
                     ((0., 0.), (0., 0.4)), (0.2, 0.1))
    place = np.linspace(scene.start, scene.goal, 11)
    panels = 255 * strip(dataclasses.replace(ARM, thickness=0.1), scene, place, 1., 100)
    assert panels.shape == (7, 100, 100, 3)
    blue, green, grey, orange, white = ((28, 95, 168), (178, 223, 178), (173, 181, 189),
                                        (233, 166, 84), (255, 255, 255))
    for panel, x, y, colour in (
            (1, 0.7, 0., blue), (1, 0., 0.7, green), (6, 0., 0.7, blue), (6, 0.7, 0., white),
            (1, -0.5, 0., grey), (6, -0.5, 0., grey), (1, 0., -0.8, orange),
            (6, 0., -0.4, orange), (6, 0., -0.8, white)):
        found = panels[panel, int(50 - 50 * y), int(50 + 50 * x)]
        np.testing.assert_allclose(found, colour, atol=3, err_msg=str((panel, x, y)))


def test_mistakes() -> None:
    with pytest.raises(UserError, match="Plans: Classification plans no motions"):
        Plans().check(tiny.plain())
    task = Plan(scenes=Scenes(robot=ARM))
    with pytest.raises(UserError, match=r"its evaluator is plans\.Plans"):
        task.evaluate(None, {})  # type: ignore[arg-type]
    assert config.from_json(config.to_json(task)) == task


def test_no_line_of_the_core_knows_of_robots() -> None:
    from tests.test_core import CORE

    for name in CORE:
        text = (ROOT / "jaxdl" / f"{name}.py").read_text()
        assert not re.search(r"\b(robots?|scenes?|motions?|trajector\w+|obstacles?)\b", text), name
