"""Motion planning by gradients through a simulator, after CHOMP (Ratliff et al. 2009,
https://doi.org/10.1109/ROBOT.2009.5152817) and TrajOpt (Schulman et al. 2014,
https://doi.org/10.1177/0278364914528132)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdl.config import Between, NonNegative, Size
from jaxdl.envs.drawn import HEADS, strip
from jaxdl.envs.robots import (
    Motion,
    Robot,
    Scene,
    Scenes,
    clearance,
    finer,
    proven,
    reaching,
    rollout,
    within,
)
from jaxdl.pictures import Images, Material, Picture
from jaxdl.task import Batch, Metrics
from jaxdl.tasks.no_test_data import NoTestData

Array = jax.Array
SHOWN = 6  # motions on the report


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PlanState:
    """All that changes, and the scenes that it is about: arrays only.

    Attributes:
      step: int32, gradient steps done.
      seen: uint32, scenes that they were of: the position in the data.
      params: controls [N, guesses, steps, size]; what is left of them when they are made to reach
        the goal is what counts.
      opt_state: of Optax.
      scenes: N of them.
    """

    step: Array
    seen: Array
    params: Array
    opt_state: Any
    scenes: Scene


class Answers(NamedTuple):
    """The best motion of each scene.

    Attributes:
      place: poses [N, M + 1, size], evenly from time 0 to 1.
      length: of the path [N], the sum of the norms of the changes of place.
      clearance: [N], proven of all the motion: nothing is touched where it is above zero.
      found: whether that is so, and the limits of places and speed are kept, [N].
    """

    place: Array
    length: Array
    clearance: Array
    found: Array


@dataclass(frozen=True, kw_only=True)
class Plan(NoTestData):
    """Motions of a robot, one for each of `batch_size` random scenes: controls over `steps`
    intervals of time are moved by their gradient, through the simulator, along which

        mean over time of |velocity|^2 + smoothness * |acceleration|^2
        + obstacle * mean over time of the sum of c(d)

    falls, where the d are the distances of all capsules to all discs, and of places and speed to
    their limits, and c is CHOMP's cost with eps = `margin`: (eps - d)^2 / (2 eps) for d between 0
    and eps, eps / 2 - d below, and nothing above. A motion of the least mean square velocity has
    one speed and is a shortest one. Controls are kept among those that end at the goal
    (`robots.reaching`).

    In each scene `guesses` motions are improved side by side, since gradients find only the nearest
    way round a disc: the straight line, and detours by random places.

    The data is `Nothing()`: the scenes follow from the seed.

    Attributes:
      scenes: which there are.
      steps: T, intervals in which a control is constant.
      guesses: motions of each scene.
      margin: distance from which on nothing is to be gained.
      smoothness: weight of the accelerations.
      obstacle: weight of the distances.
    """

    scenes: Scenes
    steps: Annotated[int, Between(2)] = 64
    guesses: Size = 12
    margin: Annotated[float, Between(1e-6)] = 0.03
    smoothness: NonNegative = 1e-4
    obstacle: NonNegative = 1e4

    evaluator: ClassVar[str] = "plans.Plans"

    @property
    def robot(self) -> Robot:
        return self.scenes.robot

    def init(self, key: Array, batch: Batch, tx: Any) -> PlanState:
        keys = jax.random.split(key, (len(batch["mask"]), 2))
        scenes = jax.vmap(self.scenes.draw)(keys[:, 0])
        params = jax.vmap(self.guessed)(scenes, keys[:, 1])
        return PlanState(step=jnp.int32(0), seen=jnp.uint32(0), params=params,
                         opt_state=tx.init(params), scenes=scenes)

    def guessed(self, scene: Scene, key: Array) -> Array:
        """Controls to begin with, [guesses, steps, size]: none, which become the straight line, and
        those of detours."""
        shape = (self.guesses, self.robot.size)
        places = self.robot.limit * jax.random.uniform(key, shape, minval=-1)
        by = (places - (scene.start + scene.goal) / 2).at[0].set(0)
        time = (jnp.arange(self.steps) + 0.5) / self.steps
        return jax.vmap(lambda by: jax.vmap(lambda t: self.robot.detour(by, t))(time))(by)

    def motion(self, scene: Scene, controls: Array) -> tuple[Motion, Array]:
        """(motion [T + 1, size], controls that reach the goal) of controls [T, size]."""
        controls = reaching(self.robot, scene, controls)
        return rollout(self.robot, scene.start, controls), controls

    def cost(self, scene: Scene, controls: Array) -> tuple[Array, Mapping[str, Array]]:
        """(cost, metrics) of one motion in one scene."""
        robot, (motion, _) = self.robot, self.motion(scene, controls)
        time = jnp.linspace(0, 1, self.steps + 1)
        distance = jax.vmap(lambda q, t: clearance(robot, scene, q, t))(motion.place, time)
        velocity = motion.velocity
        energy = jnp.square(velocity[1:]).sum(-1).mean()
        acceleration = jnp.square(jnp.diff(velocity[1:], axis=0) * self.steps).sum(-1).mean()
        # The root of zero has no gradient.
        speed = jnp.sqrt(jnp.square(velocity).sum(-1, keepdims=True) + 1e-12)
        distance = jnp.concatenate([
            distance.reshape(len(distance), -1), robot.limit - jnp.abs(motion.place),
            robot.speed - speed], -1)
        near = jnp.square(jnp.maximum(self.margin - distance, 0)) / (2 * self.margin)
        touch = jnp.where(distance < 0, self.margin / 2 - distance, near).sum(-1).mean()
        total = energy + self.smoothness * acceleration + self.obstacle * touch
        return total, {"loss": total, "energy": energy, "acceleration": acceleration,
                       "touch": touch, "free": distance.min() > 0}

    def step(self, state: PlanState, batch: Batch, tx: Any) -> tuple[PlanState, Metrics]:
        def total(params: Array) -> tuple[Array, Mapping[str, Array]]:
            costs, found = jax.vmap(lambda scene, guesses: jax.vmap(
                lambda controls: self.cost(scene, controls))(guesses))(state.scenes, params)
            return costs.sum(), found

        gradient, found = jax.grad(total, has_aux=True)(state.params)
        updates, opt_state = tx.update(gradient, state.opt_state, state.params)
        metrics = {name: x.mean() for name, x in found.items()}
        metrics["free"] = found["free"].any(1).mean()  # of scenes
        return replace(state, step=state.step + 1,
                       seen=state.seen + jnp.uint32(len(batch["mask"])),
                       params=optax.apply_updates(state.params, updates), opt_state=opt_state), {
                           **metrics, "grad_norm": optax.tree.norm(gradient)}

    def answers(self, state: PlanState, pieces: int) -> Answers:
        """Of each scene the shortest motion that is proven to touch nothing and to keep the limits,
        else that with the most clearance; `pieces` poses are looked at in each interval."""
        def one(scene: Scene, controls: Array) -> Answers:
            robot, (motion, controls) = self.robot, self.motion(scene, controls)
            motion = finer(robot, motion, controls, pieces)
            velocity = motion.velocity
            # Between two poses a velocity is as large as at one of them, at most.
            speed = jax.vmap(robot.sweep)(velocity)
            travel = jnp.maximum(speed[1:], speed[:-1]) / (len(velocity) - 1)
            time = jnp.linspace(0, 1, len(velocity))
            clear = proven(robot, scene, motion.place, time, travel)
            length = jnp.linalg.norm(jnp.diff(motion.place, axis=0), axis=-1).sum()
            return Answers(motion.place, length, clear, within(robot, motion) & (clear > 0))

        def best(given: tuple[Scene, Array]) -> Answers:
            scene, guesses = given
            all_ = jax.vmap(lambda controls: one(scene, controls))(guesses)
            short = jnp.where(all_.found, all_.length, jnp.inf).argmin()
            at = jnp.where(all_.found.any(), short, all_.clearance.argmax())
            return jax.tree.map(lambda x: x[at], all_)

        return jax.lax.map(best, (state.scenes, state.params))

    def pictures(self, state: PlanState, material: Material) -> Iterator[Picture]:
        """The motions of some scenes."""
        scenes = jax.tree.map(lambda x: x[:SHOWN], state.scenes)
        some = replace(state, params=state.params[:SHOWN], scenes=scenes)
        answers = jax.device_get(jax.jit(lambda some: self.answers(some, 4))(some))
        rows = [strip(self.robot, jax.tree.map(lambda x, i=i: x[i], scenes), place,
                      1.15 * self.scenes.reach, 112) for i, place in enumerate(answers.place)]
        yield Images(title="Motions", images=np.concatenate(rows), heads=HEADS,
                     note="One scene in each row. All of a motion goes from blue to green; at a "
                          "time the goal is light green. Discs that move are orange.")
