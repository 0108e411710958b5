"""An evaluation does not depend on the batch size or on the number of devices."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdl import parallel
from jaxdl.errors import UserError
from jaxdl.evaluate import Context, Evaluate, total
from jaxdl.experiment import Mesh
from jaxdl.tasks.classification import ClassificationReport
from jaxdl.train import Program
from tests.tiny import shorter


@functools.cache
def state() -> Any:
    """Of a network that is right about half of the time."""
    experiment = shorter()
    devices = parallel.arrange(Mesh(), devices=jax.devices()[:1])
    program = Program(experiment, experiment.data.open("train"), devices)
    return jax.device_get(program.init(program.knobs).state)


def context(devices: int, **changes: Any) -> Context:
    experiment = shorter()
    base = Context(name="test", step=3, source=functools.cache(experiment.data.open),
                   batch_size=64,
                   devices=parallel.arrange(Mesh(), devices=jax.devices()[:devices]))
    return dataclasses.replace(base, **changes)


def sums(batch_size: int, devices: int, split: str = "test") -> Any:
    task = shorter().task
    where = context(devices)
    return total(lambda t, s, b: t.evaluate(s, b), task, where.devices.replicate(state()), where,
                 split=split, batch_size=batch_size)


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 359])
def test_batch_size_and_devices_change_nothing(batch_size: int, devices: int) -> None:
    whole, found = sums(359, 1), sums(batch_size, devices)
    assert found["accuracy"].count == whole["accuracy"].count == 359
    assert found["accuracy"].total == whole["accuracy"].total
    assert found["loss"].count == 359
    assert found["loss"].total == pytest.approx(whole["loss"].total, rel=1e-6)
    assert 0.01 < whole["accuracy"].value() < 0.9


def test_an_unmasked_last_batch_would_be_seen() -> None:
    """The test above can fail: without the mask the padding counts."""
    def measure(task: Any, state: Any, batch: Any) -> Any:
        return task.evaluate(state, {**batch, "mask": jax.numpy.ones_like(batch["mask"])})

    where = context(1)
    found = total(measure, shorter().task, state(), where, split="test", batch_size=64)
    assert found["accuracy"].count == 384


def test_the_report_agrees_with_scikit_learn(tmp_path: Path) -> None:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    experiment = shorter()
    task: Any = experiment.task
    where = context(2, folder=tmp_path)
    found = ClassificationReport(every=1, batch_size=50)(
        task, where.devices.replicate(state()), where)
    source: Any = experiment.data.open("test")
    index = np.arange(source.size)
    batch = source.transform({**source.read(index), "index": index,
                              "mask": np.ones(source.size)}, jax.random.key(0))
    labels, predicted = np.asarray(batch["label"]), np.asarray(task.predict(state(), batch))
    for average in ("macro", "micro"):
        precision, recall, f1, _ = precision_recall_fscore_support(
            labels, predicted, average=average, zero_division=0)
        assert found[f"{average}_precision"] == pytest.approx(precision)
        assert found[f"{average}_recall"] == pytest.approx(recall)
        assert found[f"{average}_f1"] == pytest.approx(f1)
    assert found["accuracy"] == pytest.approx((labels == predicted).mean())
    assert 0 <= found["calibration_error"] <= 1
    table = np.loadtxt(tmp_path / "confusion_test.csv", delimiter=",", dtype=int, skiprows=1,
                       usecols=range(1, 11))
    np.testing.assert_array_equal(table, confusion_matrix(labels, predicted, labels=range(10)))


def test_an_evaluation_can_be_left_between_batches() -> None:
    class Left(Exception):
        pass

    def poll() -> None:
        raise Left

    with pytest.raises(Left):
        Evaluate()(shorter().task, state(), context(1, poll=poll))


def test_an_unknown_split_names_the_nearest() -> None:
    with pytest.raises(UserError, match="tset"):
        Evaluate(split="tset")(shorter().task, state(), context(1))
    assert json.dumps(Evaluate(split="test")(shorter().task, state(), context(1)))
