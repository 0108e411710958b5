"""A data set with few labels: which they are, and how often they come."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from jaxdl import config
from jaxdl.data.digits import Digits
from jaxdl.data.few_labels import FewLabels, balanced
from jaxdl.data.loader import shuffled
from jaxdl.data.source import Arrays, Records, StandIn
from jaxdl.errors import UserError

DIGITS = Digits(size=8, channels=1)
FEW = FewLabels(data=DIGITS, labels=50, share=0.3)


def test_as_many_of_each_class_keep_their_label_and_the_others_none() -> None:
    source, whole = FEW.open("train"), DIGITS.open("train")
    assert source.arrays is not None and whole.arrays is not None
    known = source.arrays["labelled"] > 0
    assert set(np.unique(source.arrays["labelled"])) == {0, 1} and known.sum() == 50
    np.testing.assert_array_equal(np.bincount(source.arrays["label"][known]), np.full(10, 5))
    np.testing.assert_array_equal(source.arrays["label"][known], whole.arrays["label"][known])
    assert (source.arrays["label"][~known] == -1).all()
    assert source.arrays["label"].dtype == whole.arrays["label"].dtype
    np.testing.assert_array_equal(source.arrays["image"], whole.arrays["image"])
    other: Any = dataclasses.replace(FEW, draw=1).open("train").arrays
    assert (other["labelled"] != source.arrays["labelled"]).any()
    assert "labelled" not in (FEW.open("test").arrays or {})


def test_a_supervised_network_has_the_same_labels_and_nothing_else() -> None:
    alone: Any = dataclasses.replace(FEW, share=None).open("train")
    mixed: Any = FEW.open("train")
    known = mixed.arrays["labelled"] > 0
    assert alone.size == 50 and alone.arrays.keys() == {"image", "label"}
    np.testing.assert_array_equal(alone.arrays["image"], mixed.arrays["image"][known])
    np.testing.assert_array_equal(alone.arrays["label"], mixed.arrays["label"][known])


def stream(source: Any, sizes: list[int], start: int = 0, seed: int = 3) -> list[np.ndarray]:
    batches = []
    for size in sizes:
        batches.append(source.index(seed, start, size))
        start += size
    return batches


@pytest.mark.parametrize("share", [0., 0.1, 0.3, 1.])
def test_a_share_of_every_batch_is_labelled_and_both_come_in_epochs(share: float) -> None:
    source: Any = dataclasses.replace(FEW, share=share).open("train")
    batches = stream(source, [32] * 120)
    some = [np.isin(b, source.chosen).sum() for b in batches]
    assert min(some) >= int(32 * share)  # and more: the labelled ones are among all, too
    assert np.mean(some) <= 32 * (share + (1 - share) * 1.1 * 50 / source.size)
    whole = np.concatenate(batches)
    drawn = int(len(whole) * round(share * 2 ** 20) / 2 ** 20)
    counts = np.bincount(whole, minlength=source.size)
    low, high = divmod(len(whole) - drawn, source.size)[0], -(-(len(whole) - drawn) // source.size)
    others = np.delete(counts, source.chosen)
    assert others.min() >= low and others.max() <= high
    own = counts[source.chosen]
    assert drawn // 50 + low <= own.min() and own.max() <= -(-drawn // 50) + high


def test_it_is_a_function_of_the_position_whatever_the_batch_size() -> None:
    source: Any = FEW.open("train")
    for start in (0, 1_237, 3_000_000_019):
        one = stream(source, [240], start)[0]
        for sizes in ([120, 120], [7, 33, 200], [1] * 240):
            parts = np.concatenate(stream(source, sizes, start))
            np.testing.assert_array_equal(np.sort(parts), np.sort(one))
        np.testing.assert_array_equal(stream(source, [240], start)[0], one)
    assert (stream(source, [64])[0] != stream(source, [64], seed=4)[0]).any()
    # Of both kinds there is something in every micro-batch and on every device.
    index, chosen = stream(source, [64])[0], source.chosen
    assert all(0 < np.isin(index[i::4], chosen).sum() < 16 for i in range(4))
    assert all(0 < np.isin(x, chosen).sum() < 16 for x in index.reshape(4, 16))
    assert len(shuffled(source, 0, 0, 64, 5)[4]["index"]) == 64


def test_what_it_is_is_recorded() -> None:
    assert config.from_json(config.to_json(FEW)) == FEW
    prints = {dataclasses.replace(FEW, **change).fingerprint() for change in (
        {}, {"labels": 60}, {"draw": 1}, {"share": None}, {"data": Digits(size=9, channels=1)})}
    assert len(prints) == 5
    assert FEW.names == DIGITS.names and FEW.splits == DIGITS.splits and FEW.stand_in is None
    absent = FewLabels(data=Digits(stand_in=StandIn(data=DIGITS, steps=3)), labels=20)
    assert absent.stand_in == StandIn(data=FewLabels(data=DIGITS, labels=20), steps=3)


def test_errors_name_the_nearest() -> None:
    with pytest.raises(UserError, match=r"labels=55: .* multiple of the 10 classes; the nearest: "
                                        r"50 or 60"):
        dataclasses.replace(FEW, labels=55).open("train")
    with pytest.raises(UserError, match=r"labels=4: .* nearest: 10\."):
        dataclasses.replace(FEW, labels=4).open("train")
    with pytest.raises(UserError, match=r"labels=4: 2 of each class, but .* 1 examples; at most 2"):
        balanced(np.array([0, 0, 1, -1]), 4)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class OnDisk(Digits):
        def open(self, split: str) -> Any:
            source: Any = super().open(split)
            assert isinstance(source, Arrays)
            return Records(examples=[{"label": np.int32(0)}])

    with pytest.raises(UserError, match="FewLabels: OnDisk is read from disk"):
        FewLabels(data=OnDisk()).open("train")
