"""Convolutional LSTM of Shi et al. (2015), https://arxiv.org/abs/1506.04214."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Size
from jaxdl.layers import Conv
from jaxdl.models.unet import to_channels, to_pixels

Array = jax.Array


class ConvLSTM(nn.Module):
    """Videos [B, T, H, W, C] to logits of each next frame, of the same shape: an LSTM whose states
    are maps and whose products are convolutions (equation 3, without the peepholes)

        i, f, o, g = W * x_t + U * h_{t-1} + b,
        c_t = sigmoid(f + 1) c_{t-1} + sigmoid(i) tanh(g),  h_t = sigmoid(o) tanh(c_t),

    in layers one above the other, all of which a last convolution sees.

    Attributes:
      channels: of the states of each layer.
      kernel: side of the kernels.
      patch: side of the squares of pixels that are treated as one pixel of more channels (section
        4.1 has 4).
    """

    channels: tuple[Size, ...] = (32, 32)
    kernel: Size = 3
    patch: Size = 2

    @nn.compact
    def __call__(self, video: Array, train: bool) -> Array:
        batch, length = video.shape[:2]
        frames = to_channels(video.reshape(batch * length, *video.shape[2:]), self.patch)
        x, seen = frames, []
        for i, channels in enumerate(self.channels):
            # The part of the input is of all frames at once; only the states go step by step.
            gates = Conv(4 * channels, (self.kernel, self.kernel), name=f"input{i + 1}")(x)
            gates = gates.reshape(batch, length, *gates.shape[1:])
            state = Conv(4 * channels, (self.kernel, self.kernel), use_bias=False,
                         name=f"state{i + 1}")
            h = c = jnp.zeros((*gates[:, 0].shape[:-1], channels), gates.dtype)
            outputs = []
            # Written out: on CPU gradients of convolutions inside a loop are many times slower.
            for t in range(length):
                i_, f, o, g = jnp.split(gates[:, t] + state(h), 4, -1)
                c = nn.sigmoid(f + 1) * c + nn.sigmoid(i_) * jnp.tanh(g)
                h = nn.sigmoid(o) * jnp.tanh(c)
                outputs.append(h)
            x = jnp.stack(outputs, 1).reshape(batch * length, *h.shape[1:])
            seen.append(x)
        drawn = Conv(frames.shape[-1], (1, 1), name="draw")(jnp.concatenate(seen, -1))
        return to_pixels(drawn, self.patch).reshape(video.shape)
