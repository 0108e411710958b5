"""Trees: paths, overrides, checks and records."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import pytest

from jaxdl import config, files
from jaxdl.config import Between
from jaxdl.errors import UserError


class Net(nn.Module):
    depth: int = 20
    rate: float | None = 0.1


@dataclass(frozen=True, kw_only=True)
class Part:
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1, 2)
    share: Annotated[float, Between(0, 1)] = 0.5


@dataclass(frozen=True, kw_only=True)
class Root:
    model: nn.Module = Net()
    parts: tuple[Part, ...] = (Part(), Part(kind="b"))
    named: Mapping[str, Part] = field(default_factory=lambda: {"x": Part()})
    count: Annotated[int, Between(1)] = 3
    flag: bool = False
    text: str | None = None


def test_leaves_have_dotted_paths_without_linens_own_fields() -> None:
    paths = [path for path, _ in config.leaves(Root())]
    assert paths == ["model.depth", "model.rate", "parts.0.kind", "parts.0.sizes", "parts.0.share",
                     "parts.1.kind", "parts.1.sizes", "parts.1.share", "named.x.kind",
                     "named.x.sizes", "named.x.share", "count", "flag", "text"]


def test_replace_changes_only_what_is_named() -> None:
    tree = config.replace(Root(), {"model.depth": 56, "parts.1.share": 0.25, "named.x.kind": "b"})
    assert [(p, b) for p, a, b in config.differences(Root(), tree)] == [
        ("model.depth", 56), ("parts.1.share", 0.25), ("named.x.kind", "b")]
    assert config.replace(Root(), {"named.x": Part(kind="b")}).named["x"].kind == "b"


def test_replace_names_the_nearest_path() -> None:
    with pytest.raises(UserError, match=r"^model.dephth: Root has no such field. "
                                        r"Did you mean 'model.depth'\?$"):
        config.replace(Root(), {"model.dephth": 1})
    with pytest.raises(UserError, match=r"Did you mean 'parts.1.share'"):
        config.get(Root(), "share")


@pytest.mark.parametrize(("value", "hint", "ok"), [
    (1, int, True), (True, int, False), (1.0, int, False), (1, float, True), (True, float, False),
    (float("nan"), float, False), (float("inf"), float, False), (None, float | None, True),
    ("a", Literal["a", "b"], True), ("c", Literal["a", "b"], False), (1, bool, False),
    ((1, 2), tuple[int, ...], True), ((1, "x"), tuple[int, ...], False),
    ((1, "x"), tuple[int, str], True), ((1,), tuple[int, str], False), ((), tuple[int, ...], True),
    (0, config.Size, False), (1, config.Size, True), (1.5, config.Fraction, False),
    (0.0, config.Fraction, True), (-1e-9, config.NonNegative, False), ("x", int | None, False),
    ((0.5, 1.5), tuple[config.Fraction, ...], False),
])
def test_fits(value: Any, hint: Any, ok: bool) -> None:
    assert config.fits(value, hint) is ok


def test_a_traced_float_fits_a_float() -> None:
    @jax.jit
    def run(x: jax.Array) -> jax.Array:
        assert config.fits(x, float) and config.fits(x, config.Fraction)
        config.check(config.replace(Root(), {"model.rate": x}))
        return x

    run(0.3)


@pytest.mark.parametrize(("changes", "message"), [
    ({"count": 0}, "count=0: expected int, at least 1."),
    ({"parts.0.share": 1.5}, "parts.0.share=1.5: expected float, between 0 and 1."),
    ({"parts.1.kind": "c"}, "parts.1.kind='c': expected 'a' or 'b'."),
    ({"flag": 1}, "flag=1: expected bool."),
    ({"text": 3}, "text=3: expected str or None."),
    ({"model.rate": "x"}, "model.rate='x': expected float or None."),
])
def test_check_names_path_value_and_expectation(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        config.check(config.replace(Root(), changes))
    assert str(error.value) == message


def test_check_refuses_what_cannot_be_recorded() -> None:
    with pytest.raises(UserError, match="text is a function"):
        config.check(config.replace(Root(), {"text": lambda: 0}))


def test_json_round_trip() -> None:
    tree = config.replace(Root(), {"model.depth": 8, "text": "é\n", "parts.0.sizes": ()})
    text = json.dumps(config.to_json(tree))
    assert config.from_json(json.loads(text), modules=[__name__]) == tree


def test_a_record_cannot_choose_what_to_import(tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for kind in ("evil:Thing", "os:system", "subprocess:Popen", "builtins:eval"):
        with pytest.raises(UserError, match="not part of jaxdl"):
            config.from_json({"task": {"_": kind, "args": ["x"]}})
    for kind in ("jaxdl.config:load", "jaxdl.cli:main", "jaxdl.nothing:X", "jaxdl.config:Missing",
                 "jaxdl.config:Path"):
        with pytest.raises(UserError, match="of jaxdl"):
            config.from_json({"_": kind})
    with pytest.raises(UserError, match=r"sizs: Part .* no such field. Did you mean 'sizes'\?"):
        config.from_json({"_": f"{__name__}:Part", "sizs": []}, modules=[__name__])


def test_differences_see_types_and_structure() -> None:
    assert config.differences(Root(), dataclasses.replace(Root(), parts=(Part(),)))[0][0] == "parts"
    assert config.differences({"a": 1}, {"a": 1.0}) == [("a", 1, 1.0)]
    assert config.differences(Root(), Root()) == []


@pytest.mark.parametrize(("source", "message"), [
    ("x = 1\ndef config(:\n", ":2: invalid syntax"),
    ("import numpie\n", ":1: No module named 'numpie'"),
    ("from jaxdl.optimizer import Adan\n", ":1: cannot import name 'Adan'"),
    ("x = 1\n", " has no function config() that returns the Experiment."),
    ("def config():\n    return 3\n", ": config() returned a int, not an Experiment."),
    ("def config():\n    return undefined\n", ":2: name 'undefined' is not defined"),
    ("from jaxdl.optimizer import Adam\ndef config():\n\n    return Adam(b3=1)\n",
     ":4: Adam.__init__() got an unexpected keyword argument 'b3'"),
])
def test_a_broken_file_is_told_by_its_line(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "broken_experiment.py"
    path.write_text(source)
    with pytest.raises(UserError) as error:
        files.build(files.load(path))
    assert str(error.value).startswith(f"{path}{message}")


def test_find_names_the_nearest_experiment() -> None:
    assert files.find("mlp_digits").name == "mlp_digits.py"
    with pytest.raises(UserError, match="Did you mean 'mlp_digits'"):
        files.find("mpl_digits")
    with pytest.raises(UserError, match="there is no such file"):
        files.find("nowhere/x.py")
