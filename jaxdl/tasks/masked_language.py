"""Masked language models: what was a token that is hidden?"""

from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxdl.config import Fraction
from jaxdl.task import Aux, Batch, LossTask, Mean, TrainState
from jaxdl.tasks.language import counted

Array = jax.Array


@dataclass(frozen=True, kw_only=True)
class MaskedLanguageModel(LossTask):
    """Cross-entropy of hidden tokens, given all others: Devlin et al. (2019), section 3.1, task 1.

    Of the tokens a share is chosen at random; of these 80 % become the mask, 10 % some other token,
    and 10 % stay as they are. The mask is the model's last token, which no tokenizer may have. In
    evaluation the choice is always the same for an example, whatever batch it is in. A batch has
    "tokens" int32 [B, T], -1 for none, "index" and "mask" [B].

    Attributes:
      model: called as model(tokens, train), returns logits [B, T, vocabulary].
      hidden: share of the tokens that is chosen.
    """

    model: nn.Module
    hidden: Fraction = 0.15

    further_tokens: ClassVar[int] = 1  # that the model needs beside the tokenizer's
    target_fields: ClassVar[tuple[str, ...]] = ()
    not_applicable: ClassVar[dict[str, str]] = {
        "modes": "which tokens are hidden is drawn at random in training",
        "overfits": "which tokens are hidden is drawn at random in training"}

    def loss(self, variables: dict[str, Any], batch: Batch, key: Array, *,
             train: bool) -> tuple[Mean, Aux]:
        given, target = self.hide(batch, key if train else jax.random.key(0))
        logits, mutable = self.apply(self.model, variables, given, key=key, train=train)
        return counted(logits, target, batch["mask"], mutable)

    def hide(self, batch: Batch, key: Array) -> tuple[Array, Array]:
        """(what the model is given, what it shall say: -1 where it is not asked), both [B, T]."""
        tokens = batch["tokens"]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, batch["index"])
        chosen, kind = jnp.moveaxis(jax.vmap(
            lambda key: jax.random.uniform(key, (2, tokens.shape[1])))(keys), 1, 0)
        mask = self.model.vocabulary - 1  # type: ignore[attr-defined]
        other = jax.vmap(lambda key: jax.random.randint(
            jax.random.fold_in(key, 1), tokens.shape[1:], 0, mask))(keys)
        asked = (chosen < self.hidden) & (tokens >= 0)
        given = jnp.where(kind < 0.8, mask, jnp.where(kind < 0.9, other, tokens))
        return jnp.where(asked, given, tokens), jnp.where(asked, tokens, -1)

    def logits(self, state: TrainState, batch: Batch) -> Array:
        """Of the evaluated parameters, for tokens as they are: [B, T, vocabulary]."""
        return self.apply(self.model, self.variables(state), batch["tokens"], key=state.key,
                          train=False)[0]

    def initial_loss(self, batch: Batch) -> Array:
        """Of a model for which all tokens are equally likely."""
        return jnp.log(float(self.model.vocabulary))  # type: ignore[attr-defined]
