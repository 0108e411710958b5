"""What tasks share that learn from all that they remember: DQN and SAC."""

from dataclasses import dataclass
from typing import Any

import jax

from jaxdl import replay
from jaxdl.envs.environment import Playing, Transition
from jaxdl.replay import Replay

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OffPolicyState:
    """All that changes in training: arrays only.

    Attributes:
      step: int32, iterations done, each of which plays and learns.
      seen: uint32, environments that they began in: the position in the data.
      key: the run's random key.
      params: of the networks, and what else is trained.
      target: those that targets are made of.
      opt_state: of Optax.
      playing: the environments, in the middle of their episodes.
      replay: what was played.
    """

    step: Array
    seen: Array
    key: Array
    params: Any
    target: Any
    opt_state: Any
    playing: Playing
    replay: Replay


def remembered(memory: Replay, transitions: Transition) -> Replay:
    """With transitions [T, N, ...] more."""
    return replay.added(memory, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), transitions))
