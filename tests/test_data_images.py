"""What all data sets of images share as values: they are checked, recorded, and rebuilt equal."""

import dataclasses
from typing import Any

import pytest

from jaxdl import config
from jaxdl.data.cifar import Cifar10, Cifar100
from jaxdl.data.digits import Digits
from jaxdl.data.folder import ImageFolder
from jaxdl.data.idx import FashionMnist, Idx, Mnist
from jaxdl.data.images import Images
from jaxdl.data.source import StandIn
from jaxdl.data.tfds import Tfds
from jaxdl.data.transforms import Flip, PadCrop

ALL = [Cifar10(augment=(PadCrop(pad=4), Flip()), stand_in=StandIn(data=Digits(), steps=400)),
       Cifar100(directory="somewhere"), Digits(), Mnist(), FashionMnist(validation=5_000),
       Idx(directory="somewhere"), ImageFolder(path="somewhere", size=64), Tfds(name="somewhere")]


@pytest.mark.parametrize("data", ALL, ids=lambda data: type(data).__name__)
def test_recorded(data: Images) -> None:
    config.check(data)
    assert config.from_json(config.to_json(data)) == data


@pytest.mark.parametrize("data", ALL, ids=lambda data: type(data).__name__)
def test_every_field_is_described_once(data: Any) -> None:
    from docstring_parser import parse

    for cls in (type(data), Images):
        inherited = {f.name for base in cls.__mro__[1:] if dataclasses.is_dataclass(base)
                     for f in dataclasses.fields(base)} - {"directory"}
        own = {f.name for f in dataclasses.fields(cls)} - inherited
        described = [p.arg_name for p in parse(cls.__doc__ or "").params]
        assert sorted(described) == sorted(own)
