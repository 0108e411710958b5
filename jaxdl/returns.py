"""What rewards are worth: discounted sums of them along episodes."""

import jax
import jax.numpy as jnp

Array = jax.Array


def advantages(reward: Array, value: Array, following: Array, terminated: Array, ended: Array,
               discount: Array | float, decay: Array | float) -> Array:
    """Generalised advantage estimates (Schulman et al. 2016, https://arxiv.org/abs/1506.02438,
    equation 16) of steps in time [T, ...]:

        delta_t = reward_t + discount (1 - terminated_t) following_t - value_t
        A_t = delta_t + discount decay (1 - ended_t) A_{t+1},  A_T = 0

    Args:
      reward: of step t.
      value: of what was seen before it.
      following: of what was seen after it, also where the episode was cut off there.
      terminated: whether the episode came to its end, after which nothing is to be had.
      ended: whether it came to its end or was cut off: A_{t+1} is of another one.
      discount: gamma.
      decay: lambda. 0 trusts the value after one step, 1 the rewards alone.
    """
    delta = reward + discount * jnp.where(terminated, 0, following) - value

    def back(after: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        delta, ended = now
        found = delta + discount * decay * jnp.where(ended, 0, after)
        return found, found

    _, found = jax.lax.scan(back, jnp.zeros_like(delta[0]), (delta, ended), reverse=True)
    return found


def rewards_to_go(reward: Array, following: Array, terminated: Array, ended: Array,
                  discount: Array | float) -> Array:
    """The discounted sum of the rewards from each step on [T, ...]; where an episode was cut off,
    and after the last step, the value of what followed stands for the rest. Arguments as above."""
    def back(after: Array, now: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        reward, following, terminated, ended = now
        rest = jnp.where(ended, following, after)
        found = reward + discount * jnp.where(terminated, 0, rest)
        return found, found

    _, found = jax.lax.scan(back, following[-1], (reward, following, terminated, ended),
                            reverse=True)
    return found


def n_step(reward: Array, following: Array, terminated: Array, ended: Array,
           discount: Array | float, steps: int) -> tuple[Array, Array, Array]:
    """(sums, factors, ends): of each step t of time [T, N] the next k rewards and what follows
    them, so that its return is

        sum + factor * value(end),  sum = reward_t + ... + discount^(k-1) reward_{t+k-1}

    k is `steps`, or less where the episode or the array ends before. The factor is discount^k, and
    zero where the episode came to its end (Sutton & Barto 2018, equation 7.1).

    Args:
      following: what was seen after each step, [T, N, ...]; the ends are of these.
      others: as above.
    """
    length = len(reward)
    total, end = jnp.zeros_like(reward), following
    weight = jnp.ones_like(reward)  # discount^k, and zero from where the episode has terminated
    goes_on = jnp.ones(reward.shape, bool)
    for k in range(min(steps, length)):
        at = jnp.minimum(jnp.arange(length) + k, length - 1)
        counts = goes_on & (jnp.arange(length) + k < length)[:, None]
        total = total + jnp.where(counts, weight * reward[at], 0)
        wide = counts.reshape(*counts.shape, *(1,) * (following.ndim - 2))
        end = jnp.where(wide, following[at], end)
        weight = jnp.where(counts, weight * discount * jnp.where(terminated[at], 0, 1), weight)
        goes_on = counts & ~ended[at]
    return total, weight, end
