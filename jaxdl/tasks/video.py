"""Video prediction: each next frame from those before it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl.config import Size
from jaxdl.data.transforms import clean, to_float
from jaxdl.errors import UserError
from jaxdl.pictures import Images, Material, Picture, read, some
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState

Array = jax.Array

SHOWN = 3  # videos on the report


@dataclass(frozen=True, kw_only=True)
class NextFrame(LossTask):
    """The mean over pixels of the cross-entropy between a frame, in [0, 1], and what is predicted
    of it from all frames before (Shi et al. 2015, https://arxiv.org/abs/1506.04214, section 3.2).

    The first `given` frames are seen before anything is predicted. "error" is the mean squared
    error of the predictions, "copy_error" that of the frame before. A batch has "video" [B, T, H,
    W, C], uint8 or in [0, 1], and "mask" [B].

    Attributes:
      model: called as model(video [B, T, H, W, C], train), returns the logits of each next frame.
      given: frames; of T - given the loss is the mean.
    """

    model: nn.Module
    given: Size = 3

    target_fields: ClassVar[tuple[str, ...]] = ()

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        video = to_float(clean(batch, "video")["video"])
        if video.shape[1] <= self.given:
            raise UserError(f"task.given={self.given}: videos of {video.shape[1]} frames leave "
                            "none to predict.")
        logits, mutable = self.apply(self.model, variables, video[:, :-1], key=key, train=train)
        logits, before = logits[:, self.given - 1:], video[:, self.given - 1:-1]
        wanted = video[:, self.given:]

        def mean(x: Array) -> Mean:
            return Mean.of(x.reshape(len(x), -1).mean(-1), batch["mask"])

        entropy = nn.softplus(logits) - wanted * logits
        metrics = {"error": mean((nn.sigmoid(logits) - wanted) ** 2),
                   "copy_error": mean((before - wanted) ** 2)}
        return mean(entropy), Aux(metrics=metrics, mutable=mutable)

    def initial_loss(self, batch: Batch) -> Array:
        """Of a network that predicts one half everywhere."""
        return jnp.log(2.)

    def continued(self, state: TrainState, video: Array, frames: int) -> Array:
        """A video [B, T, H, W, C] in [0, 1] and `frames` more, each predicted from all before."""
        for _ in range(frames):
            logits, _ = self.apply(self.model, self.variables(state), video, key=state.key,
                                   train=False)
            video = jnp.concatenate([video, nn.sigmoid(logits[:, -1:])], 1)
        return video

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """Videos, what is predicted of each frame, and how it goes on by itself."""
        source = material.source(material.split)
        video = to_float(next(read(source, some(source, SHOWN), SHOWN))["video"])
        length = video.shape[1]
        logits, _ = self.apply(self.model, self.variables(state), video[:, :-1], key=state.key,
                               train=False)
        half = max(self.given, length // 2)
        own = jax.jit(lambda state, video: self.continued(state, video, length - half))(
            state, video[:, :half])
        blank = jnp.zeros_like(video[:, :self.given])
        next_ = jnp.concatenate([blank, nn.sigmoid(logits[:, self.given - 1:])], 1)
        rows = jnp.stack([video, next_, own], 1)
        yield Images(
            title="Videos", heads=[str(t + 1) for t in range(length)],
            images=np.asarray(rows.reshape(-1, *video.shape[2:])),
            note="Of each video: its frames; what is predicted of each from the true ones before; "
                 f"and how it goes on after {half} frames from its own predictions.")
