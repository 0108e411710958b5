"""Wrong labels, losses that bear them, and labels out of votes."""

import dataclasses
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdl import config
from jaxdl.data.digits import Digits
from jaxdl.data.noisy_labels import PairFlip, Symmetric, Transition, WrongLabels
from jaxdl.data.votes import Voted, dawid_skene, majority, read_votes
from jaxdl.errors import UserError
from jaxdl.models.mlp import MLP
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.deep_supervision import DeepSupervision
from jaxdl.tasks.noisy_labels import Bootstrapping, ForwardCorrection, GeneralisedCrossEntropy
from jaxdl.tasks.sharpness import SAM

MODEL = MLP(widths=(4,), classes=3)
BATCH = {"label": jnp.array([0, 1, 2, 1]), "mask": jnp.ones(4), "index": jnp.arange(4),
         "image": jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 2, 1)), jnp.float32)}
LOGITS = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)) * 3, jnp.float32)
TX = optax.sgd(0.1)

# Labels that are wrong on purpose.


@pytest.mark.parametrize("noise", [
    Symmetric(rate=0.4), PairFlip(rate=0.3),
    Transition(rows=((0.7, 0.3, 0., 0.), (0., 1., 0., 0.), (0.1, 0.2, 0.3, 0.4), (0., 0., 0., 1.)))
], ids=["symmetric", "pair", "given"])
def test_labels_go_wrong_as_the_matrix_says(noise: Any) -> None:
    true = np.repeat(np.arange(4), 5_000).astype(np.int32)
    batch = {"label": jnp.asarray(true), "index": jnp.arange(20_000)}
    wrong = WrongLabels(noise=noise, classes=4)
    keys = jax.random.split(jax.random.key(0), 20_000)
    found = np.asarray(wrong(batch, keys)["label"])
    assert found.dtype == np.int32
    rates = np.array([[(found[true == i] == j).mean() for j in range(4)] for i in range(4)])
    matrix = np.asarray(noise.matrix(4))
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(rates, matrix, atol=0.025)  # 3.5 standard errors
    assert (rates[matrix == 0] == 0).all()
    if isinstance(noise, Symmetric):
        np.testing.assert_allclose(matrix, 0.4 / 3 + np.eye(4) * (0.6 - 0.4 / 3), rtol=1e-6)
    if isinstance(noise, PairFlip):
        np.testing.assert_allclose(matrix[3], [0.3, 0, 0, 0.7], rtol=1e-6)
    assert config.from_json(config.to_json(wrong)) == wrong


def test_an_examples_label_depends_on_its_id_and_the_seed_alone() -> None:
    wrong = WrongLabels(noise=Symmetric(rate=0.5), classes=4)
    keys = jax.random.split(jax.random.key(0), 64)
    batch = {"label": jnp.arange(64) % 4, "index": jnp.arange(100, 164)}
    first = wrong(batch, keys)["label"]
    order = np.random.default_rng(0).permutation(64)
    mixed = {k: x[order] for k, x in batch.items()}
    np.testing.assert_array_equal(wrong(mixed, keys[::-1])["label"], first[order])
    other = dataclasses.replace(wrong, seed=1)(batch, keys)["label"]
    assert (other != first).any()
    padded = {"label": jnp.array([-1, 7]), "index": jnp.arange(2)}
    np.testing.assert_array_equal(wrong(padded, keys[:2])["label"], [-1, 7])
    with pytest.raises(UserError, match="expected 4 rows of 4 numbers, got 2 of 2, 2"):
        WrongLabels(noise=Transition(rows=((1., 0.), (0., 1.))), classes=4)(batch, keys)


# Losses.


def both(task: Any, label: Any = BATCH["label"]) -> tuple[np.ndarray, np.ndarray]:
    """The losses [B] of given logits in training, and in evaluation."""
    batch = {**BATCH, "label": label}
    return (np.asarray(task.cross_entropy(LOGITS, batch, True)),
            np.asarray(task.cross_entropy(LOGITS, batch, False)))


def test_each_loss_is_that_of_its_paper() -> None:
    p = np.exp(np.asarray(LOGITS, np.float64))
    p /= p.sum(1, keepdims=True)
    labels = np.asarray(BATCH["label"])
    own, plain = p[np.arange(4), labels], -np.log(p[np.arange(4), labels])
    t = np.asarray(PairFlip(rate=0.3).matrix(3), np.float64)
    for task, expected in (
            (GeneralisedCrossEntropy(model=MODEL, q=0.7), (1 - own ** 0.7) / 0.7),
            (GeneralisedCrossEntropy(model=MODEL, q=1.), 1 - own),
            (GeneralisedCrossEntropy(model=MODEL, q=1e-3), plain),
            (ForwardCorrection(model=MODEL, noise=PairFlip(rate=0.3)),
             -np.log((p @ t)[np.arange(4), labels])),
            (ForwardCorrection(model=MODEL, noise=Symmetric(rate=0.)), plain),
            (Bootstrapping(model=MODEL, beta=0.9), 0.9 * plain - 0.1 * (p * np.log(p)).sum(1)),
            (Bootstrapping(model=MODEL, beta=0.8, hard=True),
             0.8 * plain - 0.2 * np.log(p.max(1)))):
        train, evaluation = both(task)
        limit = getattr(task, "q", 1.) == 1e-3
        np.testing.assert_allclose(train, expected, rtol=1e-2 if limit else 1e-5)
        np.testing.assert_allclose(evaluation, plain, rtol=1e-5)
        soft = jax.nn.one_hot(BATCH["label"], 3)
        np.testing.assert_allclose(both(task, soft)[0], train, rtol=1e-6)
        assert config.from_json(config.to_json(task)) == task


def test_forward_correction_has_its_least_at_the_true_distribution() -> None:
    """With T, and examples of one input whose true classes have the probabilities r, their noisy
    labels have r T; the loss is least, with a gradient of zero, where the model says r."""
    task = ForwardCorrection(model=MODEL, noise=Symmetric(rate=0.3))
    r = jnp.array([0.6, 0.3, 0.1])
    noisy = r @ Symmetric(rate=0.3).matrix(3)
    batch = {"label": noisy[None], "mask": jnp.ones(1)}
    plain = Classification(model=MODEL)
    corrected, other = jax.jit(lambda z: [jax.grad(lambda z, t=t: t.cross_entropy(
        z[None], batch, True)[0])(z) for t in (task, plain)])(jnp.log(r))
    np.testing.assert_allclose(corrected, 0, atol=1e-6)
    assert np.abs(other).max() > 0.05


def test_generalised_cross_entropy_weighs_its_gradient_by_p_to_the_q() -> None:
    task, plain = GeneralisedCrossEntropy(model=MODEL, q=0.7), Classification(model=MODEL)
    g, h = jax.jit(lambda z: [jax.grad(lambda z, t=t: t.cross_entropy(z, BATCH, True).sum())(z)
                              for t in (task, plain)])(LOGITS)
    own = jnp.take_along_axis(jax.nn.softmax(LOGITS), BATCH["label"][:, None], 1)
    np.testing.assert_allclose(g, own ** 0.7 * h, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("wrap", [
    lambda task: SAM(task=task),
    lambda task: DeepSupervision(task=task, layers=("dense1",), classes=3)], ids=["SAM", "deep"])
def test_methods_are_made_of_them(wrap: Any) -> None:
    task = wrap(GeneralisedCrossEntropy(model=MODEL))
    bad = {**BATCH, "mask": jnp.array([1., 1., 1., 0.])}
    bad["image"] = bad["image"].at[3].set(jnp.nan)

    @jax.jit
    def step(batch: Any) -> Any:
        state = task.init(jax.random.key(0), batch, TX)
        return task.step(state, batch, TX)[0].params

    found = step(bad)
    chex.assert_tree_all_finite(found)
    one = jnp.where(jnp.arange(4) < 3, BATCH["label"], -5)  # A masked label matters as little.
    chex.assert_trees_all_equal(found, step({**bad, "label": one}))
    label = {**BATCH, "label": jnp.array([0, 1, 2, 3])}  # no such class: NaN ends the run
    assert np.isnan(task.task.cross_entropy(LOGITS, label, True)).tolist() == [False] * 3 + [True]


# Votes.


def simulated(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True classes, five voters of different skill, who are silent for a fifth of the examples,
    and their confusion matrices."""
    random = np.random.default_rng(seed)
    truth = random.choice(3, 3_000, p=[0.5, 0.3, 0.2])
    skills = [0.9, 0.8, 0.7, 0.4, 0.4]
    confusion = np.stack([np.full((3, 3), (1 - s) / 2) + np.eye(3) * (s - (1 - s) / 2)
                          for s in skills])
    votes = np.stack([[random.choice(3, p=c[k]) for k in truth] for c in confusion], 1)
    return truth, np.where(random.random(votes.shape) < 0.2, -1, votes), confusion


def test_em_finds_the_voters_and_beats_their_majority() -> None:
    truth, votes, confusion = simulated()
    found = dawid_skene(votes, 3)
    np.testing.assert_allclose(found.confusion, confusion, atol=0.06)
    np.testing.assert_allclose(found.prior, [0.5, 0.3, 0.2], atol=0.03)
    np.testing.assert_allclose(found.probabilities.sum(1), 1, rtol=1e-9)
    better = (found.probabilities.argmax(1) == truth).mean()
    assert better > (majority(votes, 3).argmax(1) == truth).mean() + 0.05
    assert (np.diff(found.likelihood) > -1e-3 * len(votes)).all()
    assert found.likelihood[-1] > found.likelihood[0]
    # It knows how sure it may be: of those at about 0.7 seven in ten are right.
    sure = found.probabilities.max(1)
    some = (sure > 0.6) & (sure < 0.8)
    right = found.probabilities.argmax(1) == truth
    assert right[some].mean() == pytest.approx(sure[some].mean(), abs=0.08)


def test_one_iteration_is_that_of_the_paper() -> None:
    votes = np.array([[0, 0, 1], [1, -1, 1], [0, 1, 1], [-1, -1, -1], [1, 1, 0]])
    p = majority(votes, 2)
    np.testing.assert_allclose(p, [[2 / 3, 1 / 3], [0, 1], [1 / 3, 2 / 3], [0.5, 0.5],
                                   [1 / 3, 2 / 3]])
    prior = p.mean(0)
    theta = np.full((3, 2, 2), 0.01)
    for i in range(5):
        for j in range(3):
            for k in range(2):
                if votes[i, j] >= 0:
                    theta[j, k, votes[i, j]] += p[i, k]
    theta /= theta.sum(2, keepdims=True)
    expected = np.zeros((5, 2))
    for i in range(5):
        for k in range(2):
            expected[i, k] = prior[k] * np.prod([theta[j, k, votes[i, j]] for j in range(3)
                                                 if votes[i, j] >= 0])
    found = dawid_skene(votes, 2, iterations=1)
    np.testing.assert_allclose(found.confusion, theta, rtol=1e-12)
    np.testing.assert_allclose(found.likelihood, [np.log(expected.sum(1)).sum()], rtol=1e-12)
    np.testing.assert_allclose(found.probabilities, expected / expected.sum(1, keepdims=True),
                               rtol=1e-10)


def test_votes_become_labels_of_the_training_data(tmp_path: Path) -> None:
    path, digits = tmp_path / "votes.csv", Digits(size=8, channels=1)
    true = digits.open("train").arrays["label"]  # type: ignore[index]
    random = np.random.default_rng(0)
    votes = np.where(random.random((len(true), 3)) < 0.3, random.integers(0, 10, (len(true), 3)),
                     true[:, None])
    path.write_text("\n".join(f"{a},{b}," if c == 9 else f"{a}, {b},{c}" for a, b, c in votes))
    data = Voted(data=digits, votes=str(path), classes=10)
    data.prepare()
    source: Any = data.open("train")
    assert source.arrays["label"].shape == (1_438, 10)
    assert (source.arrays["label"].argmax(1) == true).mean() > 0.8
    assert data.open("test").arrays["label"].ndim == 1  # type: ignore[index]
    plain = dataclasses.replace(data, model="majority")
    np.testing.assert_allclose(plain.open("train").arrays["label"],  # type: ignore[index]
                               majority(np.where(votes == 9, [9, 9, -1], votes), 10), rtol=1e-6)
    assert plain.fingerprint() != data.fingerprint() and data.names == Digits.names
    assert config.from_json(config.to_json(data)) == data
    for text, message in (("0,1\n2\n", "line 2 has 1 cells, line 1 has 2"),
                          ("0,1\n2,cat\n", r"line 2, column 2: 'cat' is no class; expected 0 to 9"),
                          ("0,10\n", "column 2: '10' is no class"), ("", "there are no votes"),
                          ("0,1\n", "1 lines for 1438 training examples")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            data.open("train")
    path.write_text("1,\n,2\n")
    np.testing.assert_array_equal(read_votes(path, 3), [[1, -1], [-1, 2]])
    path.unlink()
    with pytest.raises(UserError, match="there is no such file"):
        data.prepare()
