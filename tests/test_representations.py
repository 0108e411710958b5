"""Features, and what is fitted to them."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from jaxdl import parallel
from jaxdl.data.digits import Digits
from jaxdl.data.few_labels import FewLabels
from jaxdl.data.transforms import Flip
from jaxdl.errors import UserError
from jaxdl.evaluate import Context
from jaxdl.experiment import Mesh
from jaxdl.models.mlp import MLP
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.representations import CHUNK, KNN, LinearProbe, Probe, features

DATA = Digits(size=8, channels=1)
TASK = Classification(model=MLP(widths=(16,)))
BATCH = {"image": jnp.zeros((4, 8, 8, 1)), "label": jnp.zeros(4, jnp.int32), "mask": jnp.ones(4),
         "index": jnp.arange(4)}
STATE = jax.jit(lambda: TASK.init(jax.random.key(0), BATCH, optax.identity()))()


def context(data: Any = DATA, devices: int = 1) -> Context:
    opened: dict[str, Any] = {}
    return Context(name="probe", step=0, batch_size=100, source=lambda split: opened.setdefault(
        split, data.open(split)), devices=parallel.arrange(
            Mesh(data=devices), devices=jax.devices()[:devices]))


def by_hand(split: str) -> tuple[np.ndarray, np.ndarray]:
    arrays: Any = DATA.open(split).arrays
    x = (arrays["image"].reshape(-1, 64) / 255 - 0.305) / 0.376
    layer = {k: np.asarray(v) for k, v in STATE.params["dense1"].items()}
    return np.maximum(x @ layer["kernel"] + layer["bias"], 0), arrays["label"]


def test_neighbours_vote_with_the_exponential_of_their_cosine() -> None:
    (known, label), (asked, truth) = by_hand("train"), by_hand("test")
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    model = KNeighborsClassifier(20, weights=lambda d: np.exp((1 - d ** 2 / 2) / 0.07))
    model.fit(unit(known), label)
    expected = model.score(unit(asked), truth)
    found = KNN(neighbours=20)(TASK, STATE, context())["accuracy"]
    assert abs(found - expected) <= 2 / len(truth) and found > 0.7
    assert KNN(neighbours=10 ** 6)(TASK, STATE, context())["accuracy"] > 0.5
    several = KNN(neighbours=1).predict(known, label, np.tile(known, (2, 1)))
    assert len(several) > 2 * CHUNK and (several == np.tile(label, 2)).all()


def test_the_probe_is_logistic_regression_on_scaled_features() -> None:
    (known, label), (asked, truth) = by_hand("train"), by_hand("test")
    alive = known.std(0) > 0
    model = LogisticRegression(C=0.5, max_iter=1_000)
    model.fit(((known - known.mean(0)) / known.std(0))[:, alive], label)
    expected = model.score(((asked - known.mean(0)) / known.std(0))[:, alive], truth)
    for devices in (1, 4):
        found = LinearProbe(l2=2.)(TASK, STATE, context(devices=devices))["accuracy"]
        assert abs(found - expected) <= 2 / len(truth) and found > 0.7


def test_training_examples_are_seen_as_they_are_and_few_of_them_if_so_wished() -> None:
    few = LinearProbe(labels=30)
    plain = few(TASK, STATE, context())
    augmented = dataclasses.replace(DATA, augment=(Flip(probability=1.),))
    assert few(TASK, STATE, context(augmented)) == plain
    turned = dataclasses.replace(DATA, evaluation=(Flip(probability=1.),))
    assert few(TASK, STATE, context(turned)) != plain
    # Those that have labels are those that a few labels would be given to.
    for share in (0.5, None):
        data = FewLabels(data=DATA, labels=30, share=share)
        assert LinearProbe()(TASK, STATE, context(data)) == plain
    assert few(TASK, STATE, context())["accuracy"] < LinearProbe()(
        TASK, STATE, context())["accuracy"]
    with pytest.raises(UserError, match=r"labels=35: .* nearest: 30 or 40"):
        LinearProbe(labels=35)(TASK, STATE, context())


def test_a_model_without_a_head_has_no_features() -> None:
    class Headless(nn.Module):
        @nn.compact
        def __call__(self, x: Any, train: bool) -> Any:
            return nn.Dense(3, name="last")(x.reshape(len(x), -1))

    task = Classification(model=Headless())
    state = task.init(jax.random.key(0), BATCH, optax.identity())
    with pytest.raises(UserError, match=r"task.model: has no layer 'head'"):
        features(task, state, BATCH)
    with pytest.raises(TypeError, match="must define predict"):
        Probe()(TASK, STATE, context())
