"""Metrics of classification against scikit-learn, under masks and split into batches."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from jaxdl import metrics

CLASSES, EXAMPLES = 7, 120


def predictions(seed):
    """Logits that favour the label; classes 5 and 6 are rare or absent."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5 + seed % 3, EXAMPLES).astype(np.int32)
    logits = rng.normal(size=(EXAMPLES, CLASSES)).astype(np.float32)
    logits[np.arange(EXAMPLES), labels] += 1
    logits[:, 6] -= 10 * (seed % 2)  # never predicted
    mask = (rng.random(EXAMPLES) < 0.8).astype(np.float32)
    return logits, labels, mask


def batches(size, *arrays):
    """Batches of one size; the last is padded with masked rubbish."""
    for start in range(0, EXAMPLES, size):
        parts = [x[start:start + size] for x in arrays]
        pad = size - len(parts[0])
        *parts, mask = [np.concatenate([x, np.repeat(x[:1], pad, 0)]) for x in parts]
        mask[size - pad:] = 0
        yield *parts, mask


def summed(function, size, *arrays):
    function = jax.jit(function)
    return sum(np.asarray(function(*batch), np.float64) for batch in batches(size, *arrays))


@pytest.mark.parametrize("size", [120, 50, 7])
@pytest.mark.parametrize("seed", [0, 1, 2, 5])
def test_confusion_and_what_follows(seed, size):
    logits, labels, mask = predictions(seed)
    predicted = logits.argmax(-1)
    matrix = summed(lambda a, b, m: metrics.confusion(a, b, m, CLASSES), size, labels, predicted,
                    mask)
    truth, guess = labels[mask > 0], predicted[mask > 0]
    np.testing.assert_array_equal(
        matrix, sklearn_metrics.confusion_matrix(truth, guess, labels=range(CLASSES)))
    assert metrics.accuracy(matrix) == pytest.approx(sklearn_metrics.accuracy_score(truth, guess))

    for average in ("macro", "micro", "weighted"):
        *want, _ = sklearn_metrics.precision_recall_fscore_support(
            truth, guess, average=average, zero_division=0)
        got = metrics.precision_recall_f1(matrix, average)
        np.testing.assert_allclose([got["precision"], got["recall"], got["f1"]], want, atol=1e-12)

    want = sklearn_metrics.precision_recall_fscore_support(
        truth, guess, labels=range(CLASSES), zero_division=0)
    table = metrics.per_class(matrix)
    np.testing.assert_allclose(np.stack(list(table.values())), np.stack(want), atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5, 7])
def test_correct_at(k):
    logits, labels, mask = predictions(0)
    got = summed(lambda x, y, m: jnp.stack([(metrics.correct_at(x, y, k) * m).sum(), m.sum()]), 50,
                 logits, labels, mask)
    if k < CLASSES:
        want = sklearn_metrics.top_k_accuracy_score(labels, logits, k=k, labels=range(CLASSES),
                                                    sample_weight=mask)
    else:
        want = 1.
    assert got[0] / got[1] == pytest.approx(want, abs=1e-6)


def test_equal_logits_are_no_better_than_chance():
    correct_at = jax.jit(metrics.correct_at)
    labels = np.arange(CLASSES)
    for constant in (0, -np.inf):
        for k in range(CLASSES + 1):
            logits = np.full((CLASSES, CLASSES), constant, np.float32)
            assert correct_at(logits, labels, k).sum() == k
    rng = np.random.default_rng(0)
    logits = rng.integers(0, 3, (200, CLASSES)).astype(np.float32)  # many ties
    labels = rng.integers(0, CLASSES, 200)
    np.testing.assert_array_equal(correct_at(logits, labels, 1), logits.argmax(-1) == labels)
    highest = jax.lax.top_k(logits, 3)[1]
    np.testing.assert_array_equal(correct_at(logits, labels, 3), (
        highest == labels[:, None]).any(-1))


def test_nan_is_wrong():
    logits = jnp.array([[jnp.nan, jnp.nan], [jnp.nan, 1.], [jnp.nan, 1.], [0., 1.]])
    labels = jnp.array([0, 0, 1, 1])
    chex.assert_trees_all_equal(metrics.correct_at(logits, labels, 1), jnp.array([0., 0., 0., 1.]))


def test_confusion_skips_what_is_out_of_range_and_masked():
    matrix = metrics.confusion(jnp.array([[0, -1], [1, 1]]), jnp.array([[0, 0], [2, 1]]),
                               jnp.array([[1, 1], [1, 0]]), 2)
    chex.assert_trees_all_equal(matrix, jnp.array([[1., 0.], [0., 0.]]))


@pytest.mark.parametrize("size", [120, 50])
def test_calibration(size):
    logits, labels, mask = predictions(2)
    probabilities = np.asarray(jax.nn.softmax(logits))
    bins = summed(lambda p, y, m: metrics.calibration_bins(p, y, m, 10), size, probabilities,
                  labels, mask)

    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    error = 0.
    for m in range(10):
        inside = (confidence > m / 10) & (confidence <= (m + 1) / 10) & (mask > 0)
        np.testing.assert_allclose(
            bins[m], [inside.sum(), confidence[inside].sum(), right[inside].sum()], rtol=1e-5)
        if inside.any():
            gap = abs(right[inside].mean() - confidence[inside].mean())
            error += inside.sum() / mask.sum() * gap
    assert metrics.expected_calibration_error(bins) == pytest.approx(error, abs=1e-6)


def test_calibration_at_the_edges():
    bins = jax.jit(lambda p, y, m: metrics.calibration_bins(p, y, m, 4))
    sure, labels, mask = np.eye(4, dtype=np.float32), np.arange(4), np.ones(4, np.float32)
    right = bins(sure, labels, mask)
    np.testing.assert_array_equal(right[3], [4, 4, 4])
    assert metrics.expected_calibration_error(right) == 0
    wrong = bins(sure, np.zeros_like(labels), mask)
    assert metrics.expected_calibration_error(wrong) == pytest.approx(0.75)
    sure[1], mask[1] = np.nan, 0
    np.testing.assert_array_equal(bins(sure, labels, mask)[3], [3, 3, 3])
    np.testing.assert_array_equal(bins(0 * sure, labels, mask)[0], [3, 0, 1])
    sure[:] = 0.5  # an upper end belongs to its bin
    np.testing.assert_array_equal(bins(sure, labels, mask)[1], [3, 1.5, 1])


def test_nothing_counted():
    empty = np.zeros((3, 3))
    assert np.isnan(metrics.accuracy(empty))
    assert np.isnan(metrics.expected_calibration_error(empty))
    assert metrics.precision_recall_f1(empty, "macro") == {"precision": 0, "recall": 0, "f1": 0}


def test_class_table():
    text = metrics.class_table([[3, 1], [0, 0]], ["cat", "capybara"])
    assert text.splitlines() == [
        "class     precision  recall      f1   support",
        "cat          1.0000  0.7500  0.8571         4",
        "capybara     0.0000  0.0000  0.0000         0"]
