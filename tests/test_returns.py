"""Advantages and returns against plain loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl.returns import advantages, rewards_to_go

RANDOM = np.random.default_rng(0)
T, N = 7, 3
REWARD, VALUE, FOLLOWING = RANDOM.normal(size=(3, T, N))
TERMINATED = RANDOM.random((T, N)) < 0.25
ENDED = TERMINATED | (RANDOM.random((T, N)) < 0.25)


@pytest.mark.parametrize(("discount", "decay"), [(0.9, 0.8), (0.99, 0.), (0.5, 1.)])
def test_advantages_are_sums_of_errors(discount: float, decay: float) -> None:
    assert (ENDED & ~TERMINATED).any() and TERMINATED.any()
    expected = np.zeros((T, N))
    for n in range(N):
        for t in range(T):  # equation 16: the errors from t on, as long as the episode goes on
            for k in range(t, T):
                after = 0 if TERMINATED[k, n] else FOLLOWING[k, n]
                error = REWARD[k, n] + discount * after - VALUE[k, n]
                expected[t, n] += (discount * decay) ** (k - t) * error
                if ENDED[k, n]:
                    break
    found = advantages(*map(jnp.asarray, (REWARD, VALUE, FOLLOWING, TERMINATED, ENDED)), discount,
                       decay)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_rewards_to_go() -> None:
    expected = np.zeros((T, N))
    for n in range(N):
        for t in range(T):
            for k in range(t, T):
                expected[t, n] += 0.9 ** (k - t) * REWARD[k, n]
                if ENDED[k, n] or k == T - 1:
                    expected[t, n] += 0.9 ** (k - t + 1) * FOLLOWING[k, n] * ~TERMINATED[k, n]
                    break
    found = rewards_to_go(*map(jnp.asarray, (REWARD, FOLLOWING, TERMINATED, ENDED)), 0.9)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_with_a_decay_of_one_both_agree() -> None:
    """A + V is then the discounted sum of the rewards: the values between cancel."""
    following = np.where(ENDED, FOLLOWING, np.roll(VALUE, -1, 0))
    following[-1] = FOLLOWING[-1]
    arrays = [jnp.asarray(x) for x in (REWARD, following, TERMINATED, ENDED)]
    whole = advantages(arrays[0], jnp.asarray(VALUE), *arrays[1:], 0.9, 1.)
    np.testing.assert_allclose(whole + VALUE, rewards_to_go(*arrays, 0.9), rtol=1e-5, atol=1e-6)
