"""Samplers of diffusion models, as pure functions of a denoiser.

All is written as in Karras et al. (2022), https://arxiv.org/abs/2206.00364: at the noise level s an
image y is x = y + s * n with n standard normal, and a denoiser D(x, s) is the mean of y given x. A
model with other scales, such as that of Ho et al. (2020), where x' = sqrt(a) y + sqrt(1 - a) n, is
the same in other units: s = sqrt((1 - a) / a) and x = x' / sqrt(a).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Denoiser = Callable[[Array, Array], Array]  # (x [B, ...], level, a scalar) -> y [B, ...]


def karras_levels(steps: int, low: float = 0.002, high: float = 80., rho: float = 7.) -> Array:
    """Noise levels from `high` to `low`, more of them at the low ones, and then zero: [steps + 1]
    (equation 5)."""
    at = jnp.linspace(0, 1, steps)
    levels = (high ** (1 / rho) + at * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return jnp.append(levels, 0.)


def ddpm_levels(schedule: str, timesteps: int = 1_000) -> Array:
    """sqrt((1 - a_t) / a_t) for t = 1 ... timesteps, rising: [timesteps].

    "linear": a_t is the product of 1 - b_t up to t, and b_t rises in a line from 0.0001 to 0.02
    (Ho et al. 2020, section 4), for 1,000 timesteps; of another number each b_t is as many times
    larger. "cosine": a_t = cos^2(pi / 2 * (t / T + 0.008) / 1.008), with b_t at most 0.999 (Nichol
    & Dhariwal 2021, https://arxiv.org/abs/2102.09672, equation 17).
    """
    if schedule == "linear":
        scale = 1_000 / timesteps
        betas = jnp.minimum(jnp.linspace(1e-4 * scale, 0.02 * scale, timesteps), 0.999)
    else:
        t = jnp.arange(timesteps + 1) / timesteps
        a = jnp.cos(jnp.pi / 2 * (t + 0.008) / 1.008) ** 2
        betas = jnp.minimum(1 - a[1:] / a[:-1], 0.999)
    log_a = jnp.cumsum(jnp.log1p(-betas))
    return jnp.sqrt(jnp.expm1(-log_a))


def spaced(levels: Array, steps: int) -> Array:
    """`steps` of rising levels, evenly spaced, from the highest to the lowest, and then zero:
    [steps + 1]."""
    at = jnp.round(jnp.linspace(len(levels) - 1, 0, steps)).astype(int)
    return jnp.append(levels[at], 0.)


def ddim(denoise: Denoiser, x: Array, levels: Array) -> Array:
    """From x at the first level to the last one, without further noise: Song et al. (2021),
    https://arxiv.org/abs/2010.02502, equation 12 with sigma = 0, which is Euler's method on
    dx/ds = (x - D(x, s)) / s.

    Args:
      denoise: the denoiser.
      x: [B, ...].
      levels: falling, [N].
    """
    def step(x: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        now, then = pair
        slope = (x - denoise(x, now)) / now
        return x + (then - now) * slope, None

    return jax.lax.scan(step, x, (levels[:-1], levels[1:]))[0]


def heun(denoise: Denoiser, x: Array, levels: Array) -> Array:
    """The same by Heun's method, of second order: Karras et al. (2022), algorithm 1. Two calls of
    the denoiser in each step but the last, where the level is zero.

    Args:
      denoise: the denoiser.
      x: [B, ...].
      levels: falling, [N], the last one zero.
    """
    def step(x: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        now, then = pair
        slope = (x - denoise(x, now)) / now
        guess = x + (then - now) * slope
        return x + (then - now) * (slope + (guess - denoise(guess, then)) / then) / 2, None

    x, _ = jax.lax.scan(step, x, (levels[:-2], levels[1:-1]))
    return ddim(denoise, x, levels[-2:])


def ddpm(denoise: Denoiser, x: Array, levels: Array, key: Array) -> Array:
    """By sampling from q(x at the next level | x, y = D(x)): Ho et al. (2020), equations 6 and 7.

    Args:
      denoise: the denoiser.
      x: [B, ...].
      levels: falling, [N].
      key: of the noise.
    """
    def step(x: Array, each: tuple[Array, Array, Array]) -> tuple[Array, None]:
        now, then, key = each
        share = (then / now) ** 2
        y = denoise(x, now)
        deviation = then * jnp.sqrt(jnp.maximum(1 - share, 0))
        noise = deviation * jax.random.normal(key, x.shape, x.dtype)
        return y + share * (x - y) + noise, None

    keys = jax.random.split(key, len(levels) - 1)
    return jax.lax.scan(step, x, (levels[:-1], levels[1:], keys))[0]


def guided(denoise: Callable[[Array, Array, bool], Array], scale: Array | float) -> Denoiser:
    """D(x, s) + scale * (D(x, s | label) - D(x, s)): Ho & Salimans (2022),
    https://arxiv.org/abs/2207.12598, equation 6, where 1 + w is the scale: 1 guides not at all.

    Args:
      denoise: (x, level, whether it is told the label) -> y.
      scale: of the difference.
    """
    def mixed(x: Array, level: Array) -> Array:
        without = denoise(x, level, False)
        return without + scale * (denoise(x, level, True) - without)

    return mixed
