"""An arm of four links gets past moving discs in 95 of 100 random scenes, by gradients.

    python launch.py --experiment=plan_arm
    python launch.py --experiment=plan_arm --seed=1

Trajectories are optimised through a differentiable simulator, after CHOMP (Ratliff et al. 2009,
https://doi.org/10.1109/ROBOT.2009.5152817), in a hundred scenes of 24 discs at once, which move in
half of the scenes; `jaxdl.envs.robots.Scenes` says how they are drawn. `test/collision_free` is the
share of scenes in which the motion is proven to touch nothing, which shall be 0.95, and
`test/length_ratio` its length over that of a sampling planner (the shortest of four paths of
RRT-Connect, after shortcuts), the mean over the scenes that both have solved, which shall be 1.1 at
most. The straight line is free in no more than 5 of the 100 scenes, one of the sixteen guesses that
the optimisation begins with in about 80.
"""

from jaxdl.data.nothing import Nothing
from jaxdl.envs.robots import Arm, Scenes
from jaxdl.experiment import Best, Experiment
from jaxdl.optimizer import Adam, Cosine
from jaxdl.plans import Plans
from jaxdl.tasks.plan import Plan


def config() -> Experiment:
    return Experiment(
        task=Plan(scenes=Scenes(robot=Arm(links=(0.3, 0.25, 0.25, 0.2)), discs=24, room=0.02),
                  guesses=16),
        data=Nothing(),
        optimizer=Adam(learning_rate=Cosine(peak=0.15)),
        evals={"test": Plans(every=100)},
        best=Best(metric="test/collision_free"),
        steps=100, batch_size=100, log_every=10,
    )
