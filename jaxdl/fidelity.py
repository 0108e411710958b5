"""How near an image comes to another: PSNR and SSIM, each a number for each image of a batch."""

import jax
import jax.numpy as jnp

Array = jax.Array


def psnr(a: Array, b: Array, span: float = 1.) -> Array:
    """10 log10(span^2 / mean squared error) of images [B, H, W, C], in decibels: [B]. `span` is the
    range of the values. Infinite for equal images."""
    error = jnp.square(a - b).reshape(len(a), -1).mean(-1)
    return 10 * jnp.log10(span ** 2 / error)


def ssim(a: Array, b: Array, span: float = 1.) -> Array:
    """Structural similarity of images [B, H, W, C], the mean over places and channels: [B].

    Wang et al. (2004), section III.B: with means, variances and covariance in windows of 11 x 11
    whose weights are a Gaussian of deviation 1.5, ((2 m_a m_b + c) (2 s_ab + d)) / ((m_a^2 + m_b^2
    + c) (s_a^2 + s_b^2 + d)), c = (0.01 span)^2 and d = (0.03 span)^2; 1 for equal images. Places
    whose window leaves the image do not count.
    """
    at = jnp.arange(-5, 6)
    weight = jnp.exp(-0.5 * (at / 1.5) ** 2)
    weight = (weight / weight.sum()).astype(a.dtype)

    def blurred(x: Array) -> Array:
        for axis in (1, 2):
            size = x.shape[axis] - 10
            x = sum(w * jax.lax.slice_in_dim(x, i, i + size, axis=axis)
                    for i, w in enumerate(weight))  # type: ignore[assignment]
        return x

    mean_a, mean_b = blurred(a), blurred(b)
    # Around the mean of the whole image, so that little is lost to rounding.
    a, b = (x - x.mean((1, 2), keepdims=True) for x in (a, b))
    low_a, low_b = blurred(a), blurred(b)
    var_a, var_b = blurred(a * a) - low_a ** 2, blurred(b * b) - low_b ** 2
    both = blurred(a * b) - low_a * low_b
    c, d = (0.01 * span) ** 2, (0.03 * span) ** 2
    similar = ((2 * mean_a * mean_b + c) * (2 * both + d)
               / ((mean_a ** 2 + mean_b ** 2 + c) * (var_a + var_b + d)))
    return similar.reshape(len(a), -1).mean(-1)
