"""Evolution strategies: Salimans et al. (2017), https://arxiv.org/abs/1703.03864."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxdl import films
from jaxdl.config import Between, Size
from jaxdl.envs.environment import Ended, Environment, advance, begin, finished
from jaxdl.errors import UserError
from jaxdl.policies import Policy, chosen, policy, suits
from jaxdl.task import Batch, Metrics
from jaxdl.tasks.no_test_data import NoTestData

Array = jax.Array


def ranks(score: Array) -> Array:
    """The ranks of scores [N] in a line from -1/2, of the lowest, to 1/2; equal ones share the mean
    of theirs."""
    lower = (score < score[:, None]).sum(1)
    equal = (score == score[:, None]).sum(1)
    return (lower + (equal - 1) / 2) / (len(score) - 1) - 0.5


def noise(params: Any, key: Array, count: int) -> Any:
    """`count` trees like that of the parameters, of standard normal numbers: [count, ...]."""
    leaves, form = jax.tree.flatten(params)
    return jax.tree.unflatten(form, [
        jax.random.normal(jax.random.fold_in(key, i), (count, *x.shape), x.dtype)
        for i, x in enumerate(leaves)])


def population(params: Any, noise: Any, deviation: Array | float) -> Any:
    """The parameters plus each of the noises times the deviation, then minus them: [2 n, ...]."""
    return jax.tree.map(lambda x, e: jnp.concatenate([x + deviation * e, x - deviation * e]),
                        params, noise)


def gradient(noise: Any, score: Array, deviation: Array | float) -> Any:
    """An estimate of the gradient of E F(params + deviation * e), e standard normal, from the
    scores F [2 n] of a `population`:

        1 / (2 n deviation) sum_i (F(params + deviation e_i) - F(params - deviation e_i)) e_i
    """
    plus, minus = jnp.split(score, 2)
    weight = (plus - minus) / (len(score) * deviation)
    return jax.tree.map(lambda e: jnp.tensordot(weight, e, 1), noise)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class EvolutionState:
    """All that changes in training: arrays only.

    Attributes:
      step: int32, iterations done.
      seen: uint32, episodes played: the position in the data.
      key: the run's random key.
      params: of the network.
      opt_state: of Optax.
    """

    step: Array
    seen: Array
    key: Array
    params: Any
    opt_state: Any


@dataclass(frozen=True, kw_only=True)
class Evolution(NoTestData):
    """An iteration perturbs the parameters by noise, half of `batch_size` times, and plays an
    episode with the parameters plus each noise, and another one with them minus it, from the same
    beginning. The optimizer is given minus the estimated `gradient` of the `ranks` of the returns.

    The data is `Nothing()`. Of each parameter there are `batch_size` in memory.

    Attributes:
      model: called as model(observations [N, ...], train), returns [N, outputs]; the likeliest
        actions are taken.
      env: what is played.
      deviation: of the noise, sigma: so large that some do otherwise than others. Where all returns
        are equal ("highest" is "return"), nothing is learned.
      limit: steps after which an episode counts as it is.
    """

    model: nn.Module
    env: Environment
    deviation: Annotated[float, Between(1e-6, 1e3)] = 0.1
    limit: Size = 1_000

    pictures = films.pictures

    @property
    def policy(self) -> Policy:
        """How actions follow from what the model says."""
        return policy(self.env.actions())

    def init(self, key: Array, batch: Batch, tx: Any) -> EvolutionState:
        size = len(batch["mask"])
        if size % 2:
            raise UserError(f"batch_size={size}: expected an even number of episodes, of which two "
                            "share each noise.")
        observation = self.env.reset(key)[1][None]
        said, variables = self.model.init_with_output(key, observation, True)
        params = variables["params"]
        suits(self.model, said, self.policy.outputs)
        return EvolutionState(step=jnp.int32(0), seen=jnp.uint32(0), key=jax.random.fold_in(key, 1),
                              params=params, opt_state=tx.init(params))

    def apply(self, params: Any, observation: Array) -> Array:
        """What the model says of observations [N, ...]."""
        found: Any = self.model.apply({"params": params}, observation, False)
        return found

    def step(self, state: EvolutionState, batch: Batch, tx: Any) -> tuple[EvolutionState, Metrics]:
        key, size = jax.random.fold_in(state.key, state.step), len(batch["mask"])
        drawn = noise(state.params, jax.random.fold_in(key, 0), size // 2)
        played = self.play(population(state.params, drawn, self.deviation),
                           jax.random.fold_in(key, 1))
        uphill = gradient(drawn, ranks(played.total), self.deviation)
        downhill = jax.tree.map(jnp.negative, uphill)
        updates, opt_state = tx.update(downhill, state.opt_state, state.params)
        return replace(state, step=state.step + 1, seen=state.seen + jnp.uint32(size),
                       params=optax.apply_updates(state.params, updates), opt_state=opt_state), {
                           **finished(played), "loss": -played.total.mean(),
                           "highest": played.total.max(), "grad_norm": optax.tree.norm(uphill)}

    def play(self, params: Any, key: Array) -> Ended:
        """An episode of each of several parameters [2 n, ...]; the i-th and the n + i-th meet the
        same environment."""
        count = len(jax.tree.leaves(params)[0])

        def keys(i: Array | int) -> Array:
            half = jax.random.split(jax.random.fold_in(key, i), count // 2)
            return jnp.concatenate([half, half])

        def goes_on(now: Any) -> Array:
            i, _, found = now
            return (i <= self.limit) & ~found.ended.all()

        def one(now: Any) -> Any:
            i, playing, found = now
            said = jax.vmap(lambda p, x: self.apply(p, x[None])[0])(params, playing.observation)
            action = self.policy.bounded(self.policy.mode(said))
            playing, step, ended = advance(self.env, keys(i), playing, action)
            counts = ~found.ended
            return i + 1, playing, Ended(found.ended | ended.ended,
                                         found.total + jnp.where(counts, step.reward, 0),
                                         found.length + counts)

        playing = begin(self.env, keys(0))
        nothing = Ended(jnp.zeros(count, bool), jnp.zeros(count), jnp.zeros(count, jnp.int32))
        _, _, found = jax.lax.while_loop(goes_on, one, (jnp.int32(1), playing, nothing))
        return found._replace(ended=jnp.ones(count, bool))

    def act(self, state: EvolutionState, observation: Array, key: Array | None) -> Array:
        """Actions [N, ...] of observations, drawn with the key; None takes the likeliest."""
        return chosen(self.policy, self.apply(state.params, observation), key)
