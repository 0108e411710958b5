"""Variational autoencoder of Kingma & Welling (2014), https://arxiv.org/abs/1312.6114."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdl import noise
from jaxdl.config import Between, NonNegative, Size
from jaxdl.data.transforms import clean
from jaxdl.errors import UserError
from jaxdl.evaluate import Evaluate
from jaxdl.generative import between, check_pixels, drawn, path_between, pixels, same_shape
from jaxdl.pictures import Images, Material, Picture, read, some
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState

Array = jax.Array

SHOWN = 8  # images that are drawn again on the report


class Whole(nn.Module):
    """(what the decoder draws, mean, log variance) of images [B, H, W, C] and noise [B, latents].

    Attributes:
      encoder: [B, H, W, C] to [B, features], of which a dense layer makes mean and log variance.
      decoder: [B, latents] to [B, H, W, C].
      latents: numbers that an image is drawn from.
    """

    encoder: nn.Module
    decoder: nn.Module
    latents: int

    def setup(self) -> None:
        self.posterior = nn.Dense(2 * self.latents)

    def __call__(self, image: Array, epsilon: Array, train: bool) -> tuple[Array, Array, Array]:
        mean, log_variance = self.encode(image, train)
        z = mean + jnp.exp(log_variance / 2) * epsilon
        return self.decode(z, train), mean, log_variance

    def encode(self, image: Array, train: bool) -> tuple[Array, Array]:
        mean, log_variance = jnp.split(self.posterior(self.encoder(image, train)), 2, -1)
        return mean, log_variance

    def decode(self, z: Array, train: bool) -> Array:
        return self.decoder(z, train)


@dataclass(frozen=True, kw_only=True)
class VAE(LossTask):
    """An image x is drawn from latent numbers z, and an encoder guesses them: the loss is

        E_q(z|x)[-log p(x|z)] + beta * KL(q(z|x) || p(z)),

    in nats for each image, with one z drawn as mean + deviation * noise (section 2.4), p(z)
    standard normal and q(z|x) normal with a diagonal covariance. For beta = 1 it is the negative
    evidence lower bound ("elbo" is the bound itself, whatever beta is).

    A batch has "image" [B, H, W, C] and "mask" [B]; for `likelihood="bernoulli"` the pixels are 0
    and 1 (`Binarise`), or probabilities.

    Attributes:
      encoder: Linen module called as encoder(image, train), which returns features [B, F].
      decoder: called as decoder(z, train), returns [B, H, W, C]: the log-odds of a pixel being 1,
        or the means of pixels.
      latents: numbers in z.
      beta: weight of the divergence (Higgins et al. 2017, equation 4).
      likelihood: of pixels: "bernoulli", or "gaussian" with one deviation for all.
      deviation: of a pixel from its mean, where they are Gaussian.
    """

    encoder: nn.Module
    decoder: nn.Module
    latents: Size = 32
    beta: NonNegative = 1.
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    deviation: Annotated[float, Between(1e-6)] = 0.1

    target_fields: ClassVar[tuple[str, ...]] = ()
    not_applicable: ClassVar[Mapping[str, str]] = {
        "modes": "in training the latent numbers are drawn at random",
        "overfits": "the latent numbers are drawn anew in each step"}

    def whole(self) -> Whole:
        """Encoder and decoder as one model."""
        return Whole(self.encoder, self.decoder, self.latents)

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        batch = clean(batch)
        epsilon = noise.normal(key if train else jax.random.key(0), batch, (self.latents,))
        (given, mean, log_variance), mutable = self.apply(
            self.whole(), variables, batch["image"], epsilon, key=key, train=train)
        same_shape(given, batch["image"], "task.decoder")
        reconstruction = -self.log_likelihood(batch["image"], given)
        divergence = 0.5 * (mean ** 2 + jnp.exp(log_variance) - 1 - log_variance).sum(-1)
        mask = batch["mask"]
        metrics = {"elbo": -reconstruction - divergence, "reconstruction": reconstruction,
                   "divergence": divergence}
        return Mean.of(reconstruction + self.beta * divergence, mask), Aux(
            metrics={n: Mean.of(x, mask) for n, x in metrics.items()}, mutable=mutable)

    def check(self, experiment: Any) -> None:
        """Raises a UserError where pixels that are drawn as 0 or 1 are normalised."""
        if self.likelihood == "bernoulli":
            check_pixels(experiment.data)

    def log_likelihood(self, image: Array, given: Array) -> Array:
        """log p(image | what the decoder gives), both [B, H, W, C]: [B]."""
        if self.likelihood == "bernoulli":
            each = image * given - jax.nn.softplus(given)
        else:
            each = (-0.5 * ((image - given) / self.deviation) ** 2
                    - jnp.log(jnp.sqrt(2 * jnp.pi) * self.deviation))
        return each.reshape(len(image), -1).sum(-1)

    def log_weight(self, state: TrainState, batch: Batch, key: Array) -> Array:
        """log p(x, z) / q(z|x) of a z that is drawn from q: [B]."""
        epsilon = noise.normal(key, batch, (self.latents,))
        (given, mean, log_variance), _ = self.apply(
            self.whole(), self.variables(state), batch["image"], epsilon, key=key, train=False)
        z = mean + jnp.exp(log_variance / 2) * epsilon
        ratio = 0.5 * (epsilon ** 2 + log_variance - z ** 2).sum(-1)  # log p(z) - log q(z|x)
        return self.log_likelihood(batch["image"], given) + ratio

    def decoded(self, state: TrainState, z: Array) -> Array:
        """The mean of the images of latent numbers [N, latents]: [N, H, W, C]."""
        given: Any = self.whole().apply(self.variables(state), z, False, method="decode")
        return jax.nn.sigmoid(given) if self.likelihood == "bernoulli" else given

    def sample(self, state: TrainState, key: Array, count: int) -> Array:
        """The mean of the images of `count` latent numbers from the prior: [count, H, W, C]."""
        return self.decoded(state, jax.random.normal(key, (count, self.latents)))

    def interpolate(self, state: TrainState, key: Array, rows: int, columns: int) -> Array:
        """Images of latent numbers between two from the prior, row by row."""
        ends = jax.random.normal(key, (2, rows, self.latents))
        return self.decoded(state, path_between(ends[0], ends[1], columns))

    def pictures(self, state: TrainState, material: Material) -> Iterator[Picture]:
        """Samples, images beside what becomes of them, and what lies between samples."""
        source = material.source(material.split)
        yield drawn(self, state, material)
        batch = next(read(source, some(source, SHOWN), SHOWN))
        mean, _ = self.whole().apply(self.variables(state), batch["image"], False, method="encode")
        again = self.decoded(state, mean)
        columns = jnp.stack([batch["image"], again], 1).reshape(-1, *again.shape[1:])
        yield Images(title="Reconstructions", heads=("image", "decoded"),
                     images=np.asarray(pixels(columns, source)))
        yield between(self, state, material)


@dataclass(frozen=True, kw_only=True)
class ImportanceWeighted(Evaluate):
    """The importance-weighted bound of Burda et al. (2016), https://arxiv.org/abs/1509.00519,
    equation 8, in nats for each image: E log (1/k) sum_i p(x, z_i) / q(z_i | x). It is below the
    log-likelihood, and nears it as k grows.

    Attributes:
      samples: k.
    """

    samples: Size = 64

    def check(self, experiment: Any) -> None:
        """Raises a UserError where the task has no latent numbers."""
        if not hasattr(experiment.task, "log_weight"):
            raise UserError(f"ImportanceWeighted: {type(experiment.task).__name__} has no latent "
                            "numbers; expected a VAE.")

    def measure(self, task: Any, state: TrainState, batch: Batch) -> Any:
        batch = clean(batch)
        keys = jax.random.split(jax.random.key(0), self.samples)
        weights = jax.lax.map(lambda key: task.log_weight(state, batch, key), keys)  # [k, B]
        bound = jax.nn.logsumexp(weights, 0) - jnp.log(self.samples)
        return {"bound": Mean.of(bound, batch["mask"])}
