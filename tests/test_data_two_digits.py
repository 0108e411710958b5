"""Two digits on one picture: where they lie, and which label is whose."""

import numpy as np
import pytest

from jaxdl.data.digits import Digits
from jaxdl.data.transforms import PadCrop
from jaxdl.data.two_digits import TwoDigits
from jaxdl.errors import UserError


def test_the_second_digit_lies_down_and_right_of_the_first() -> None:
    plain = Digits(size=8, channels=1)
    data = TwoDigits(data=plain, shift=3)
    for split in ("train", "test"):
        one, two = plain.read(split), data.read(split)
        assert two["image"].shape == (len(one["image"]), 14, 14, 1)
        np.testing.assert_array_equal(two["label"], one["label"])
        found = two["image"]
        # Rows above the second one hold the first alone, rows below the first one the second.
        np.testing.assert_array_equal(found[:, :6, :8], np.maximum(one["image"][:, :6], 0))
        assert (found[:, :6, 8:] == 0).all() and (found[:, 8:, :6] == 0).all()
        lower = {bytes(x): label for x, label in zip(one["image"][:, 2:], one["label"],
                                                     strict=True)}
        same = [lower.get(bytes(x)) for x in found[:, 8:, 6:]]
        assert np.mean([a == b for a, b in zip(same, two["second"], strict=True)]) == 1.0
        again = data.read(split)
        np.testing.assert_array_equal(again["image"], found)
        assert (two["label"] != two["second"]).mean() > 0.8
    few = TwoDigits(data=plain, shift=3, examples=50)
    assert len(few.read("train")["label"]) == 50
    assert few.fingerprint() != data.fingerprint()
    batch = few.open("train").read(np.arange(4))
    assert set(batch) == {"image", "label", "second"}


def test_colours_are_refused() -> None:
    with pytest.raises(UserError, match="TwoDigits: data: grey pictures in memory are needed"):
        TwoDigits(data=Digits(channels=3)).read("train")


def test_what_would_be_ignored_is_refused() -> None:
    for options in ({"validation": 10}, {"augment": (PadCrop(pad=1),)}):
        data = TwoDigits(data=Digits(size=8, channels=1, **options))
        with pytest.raises(UserError, match=f"TwoDigits: data.{next(iter(options))} would be"):
            data.read("train")
