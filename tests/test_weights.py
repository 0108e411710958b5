"""Published weights: layouts, names, what does not fit, and starting a run from them."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdl import checkpoint, cli, config, weights
from jaxdl.data.digits import Digits
from jaxdl.errors import UserError
from jaxdl.experiment import InitFrom
from jaxdl.init_from import overlay
from jaxdl.models.convnext import ConvNeXt
from jaxdl.models.mixer import Mixer
from jaxdl.models.mlp import MLP
from jaxdl.models.resnet import ResNet
from jaxdl.models.resnet_v2 import ResNetV2
from jaxdl.models.vit import VisionTransformer
from jaxdl.task import named
from jaxdl.tasks.classification import Classification
from jaxdl.tasks.style import PaintedImage
from tests.test_train import fit
from tests.tiny import plain

SIZE = 8


def variables(model, size=SIZE, channels=3):
    """Random variables of a model, each array different from its initial value."""
    tree = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(
        (1, size, size, channels)), train=False))
    random = np.random.default_rng(0)
    return jax.tree.map(lambda x: random.normal(size=x.shape).astype(np.float32), tree)


RESNET = ResNet(depth=8, classes=3)


@pytest.fixture
def state():
    task = Classification(model=RESNET)
    batch = {"image": jnp.zeros((2, SIZE, SIZE, 3)), "label": jnp.zeros(2, jnp.int32),
             "mask": jnp.ones(2)}
    import optax

    return task, task.init(jax.random.key(1), batch, optax.sgd(0.1))


def test_a_network_inside_a_task_takes_its_published_weights(tmp_path):
    import optax

    flat = named(variables(RESNET))
    path = tmp_path / "resnet.safetensors"
    weights.write(path, flat, weights.of_model(RESNET)["torchvision"], {})
    task = PaintedImage(features=RESNET, content_layers=("stem_conv",),
                        style_layers=("stem_conv",))
    image = jnp.zeros((1, SIZE, SIZE, 3))
    batch = {"image": image, "style": image, "index": jnp.zeros(1, int), "mask": jnp.ones(1)}
    fresh = task.init(jax.random.key(1), batch, optax.sgd(0.1))
    got, line = overlay(fresh, InitFrom(
        path=str(path), fresh=("params/(?!features/).*",),
        rename=((r"^(params|mutable/batch_stats)/", r"\1/features/"),)), task)
    assert f"{len(flat)} arrays taken, 1 fresh, 0 unused" in line
    found = named({"params": got.frozen["features"], "mutable": {
        "batch_stats": got.mutable["batch_stats"]["features"]}})
    for place, x in found.items():
        np.testing.assert_array_equal(x, flat[place.removeprefix("mutable/")], place)


def test_layouts_are_turned_and_turned_back():
    kernel = np.arange(2 * 3 * 4 * 5).reshape(5, 4, 2, 3)  # [out, in, height, width]
    here = weights.from_torch("params/a/kernel", kernel, (2, 3, 4, 5))
    assert here[1, 2, 3, 4] == kernel[4, 3, 1, 2]
    np.testing.assert_array_equal(weights.to_torch("params/a/kernel", here), kernel)
    dense = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(weights.from_torch("params/a/kernel", dense, (3, 2)), dense.T)
    scale = np.arange(3.).reshape(3, 1, 1)
    np.testing.assert_array_equal(weights.from_torch("params/a/scale", scale, (3,)), [0, 1, 2])
    assert weights.shape_here("params/a/kernel", [5, 4, 1, 1], (4, 5)) == [4, 5]
    assert weights.shape_here("params/a/kernel", [5, 4, 3, 3], (3, 3, 4, 6)) == [3, 3, 4, 5]


@pytest.mark.parametrize("model,some", [
    (ResNet(depth=8, shortcut="projection", squeeze=4),
     {"conv1.weight", "layer2.0.downsample.1.running_var", "layer3.0.se.fc2.bias", "fc.bias",
      "layer1.0.bn2.weight", "bn1.running_mean"}),
    (ResNetV2(depth=8), {"stem.conv.weight", "stages.1.blocks.0.downsample.conv.weight",
                         "stages.0.blocks.0.norm1.weight", "norm.running_mean", "head.fc.weight"}),
    (ConvNeXt(blocks=(1, 2), channels=(4, 8)),
     {"features.0.1.weight", "features.3.1.block.0.weight", "features.3.1.layer_scale",
      "features.2.0.bias", "features.2.1.weight", "classifier.0.weight", "classifier.2.weight"}),
    (VisionTransformer(patch=4, width=8, layers=2, heads=2),
     {"class_token", "encoder.pos_embedding", "conv_proj.bias", "encoder.ln.weight",
      "encoder.layers.encoder_layer_1.self_attention.in_proj_weight", "heads.head.weight",
      "encoder.layers.encoder_layer_0.self_attention.out_proj.bias",
      "encoder.layers.encoder_layer_1.mlp.3.weight", "encoder.layers.encoder_layer_1.ln_2.bias"}),
    (Mixer(patch=4, width=8, layers=1, tokens=4),
     {"stem.proj.weight", "blocks.0.mlp_tokens.fc2.bias", "blocks.0.mlp_channels.fc1.weight",
      "blocks.0.norm2.weight", "norm.bias", "head.weight"}),
], ids=lambda x: type(x).__name__ if not isinstance(x, set) else "")
def test_every_variable_has_a_published_name(model, some):
    paths = list(named(variables(model)))
    first = next(iter(weights.of_model(model).values()))
    found = set(weights.names(paths, first).values())
    assert some <= found
    assert not any("stage1" in name or "block1" in name or "/" in name for name in found)
    for rename in weights.of_model(model).values():
        assert len(set(weights.names(paths, rename).values())) == len(paths)


def test_written_weights_are_read_into_a_state(tmp_path: Path, state) -> None:
    task, fresh = state
    flat = named(variables(RESNET))
    path = tmp_path / "resnet.safetensors"
    weights.write(path, flat, weights.of_model(RESNET)["torchvision"], {"by": "test"})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    got, line = overlay(fresh, InitFrom(path=str(path)), task)
    assert line == (f"started from {path} (torchvision's names): {len(flat)} arrays taken, "
                    "0 fresh, 0 unused")
    for place, x in named({"params": got.params, "mutable": got.mutable}).items():
        np.testing.assert_array_equal(x, flat[place.removeprefix("mutable/")], place)


def test_what_does_not_fit_is_a_table_and_one_line(tmp_path: Path, state, capsys) -> None:
    task, fresh = state
    path = tmp_path / "x.safetensors"
    arrays = {p: x for p, x in named(variables(RESNET.clone(classes=5))).items()
              if "stage1_block1/norm1/bias" not in p}
    weights.write(path, arrays, weights.of_model(RESNET)["torchvision"], {})
    stored = weights.read(path, list(weights.shapes(path)))
    save_file({**stored, "more.weight": np.zeros((2, 3)), "bn1.num_batches_tracked": np.array(3)},
              path)
    with pytest.raises(UserError, match=r"init_from: params/stage1_block1/norm1/bias is not in "
                       r".*x.safetensors .* \(1 missing in all\)"):
        overlay(fresh, InitFrom(path=str(path)), task)
    table = " ".join(capsys.readouterr().out.split())
    assert "4 of the arrays do not fit" in table and "num_batches" not in table
    assert "params/stage1_block1/norm1/bias 16 - missing" in table
    assert "params/head/kernel 64x3 64x5 other shape" in table
    assert "more.weight - 2x3 unexpected" in table
    with pytest.raises(UserError, match=r"init_from.path=no/run: there is no such run or file; "):
        overlay(fresh, InitFrom(path="no/run"), task)
    with pytest.raises(UserError, match=r"init_from: params/head/bias is \[5\] in .*, and \[3\]"):
        overlay(fresh, InitFrom(path=str(path), fresh=(".*1_block1/norm1/bias",)), task)
    init = InitFrom(path=str(path), fresh=(".*1_block1/norm1/bias", ".*/head/.*"))
    got, line = overlay(fresh, init, task)
    assert line.endswith(" 3 fresh, 3 unused")  # the head, and "more"
    np.testing.assert_array_equal(got.params["stem_conv"]["kernel"],
                                  arrays["params/stem_conv/kernel"])
    assert np.all(got.params["head"]["kernel"] == fresh.params["head"]["kernel"])


def test_a_run_is_exported_under_published_names(tmp_path: Path, capfd) -> None:
    experiment = plain(task=Classification(model=ResNet(depth=8, classes=10), ema=0.5), steps=2,
                       data=Digits(size=8))
    run = tmp_path / "run"
    fit(run, experiment)
    flags = ["export", f"--experiment={run}"]
    assert cli.main([*flags, "--format=safetensors"]) == 0
    path = run / "export" / "step_2.safetensors"
    assert f"written: {path}, " in capfd.readouterr().out
    stored = {p.removeprefix("state/"): x for p, x in
              checkpoint.arrays(run / "checkpoints", 2).items()}
    found = weights.read(path, ["conv1.weight", "fc.bias", "bn1.running_mean"])
    np.testing.assert_array_equal(found["conv1.weight"],
                                  stored["ema/stem_conv/kernel"].transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(found["fc.bias"], stored["ema/head/bias"])
    np.testing.assert_array_equal(found["bn1.running_mean"],
                                  stored["mutable/batch_stats/stem_norm/mean"])
    assert len(weights.shapes(path)) == sum(p.startswith(("ema/", "mutable/")) for p in stored)

    other = tmp_path / "other"
    fit(other, config.replace(experiment, {"init_from.path": str(path), "task.ema": None,
                                           "optimizer.learning_rate.peak": 0.}))
    again = checkpoint.arrays(other / "checkpoints", 2)
    np.testing.assert_array_equal(again["state/params/head/kernel"], stored["ema/head/kernel"])
    assert cli.main([*flags, f"--output={path}"]) == 0
    assert f"replaced: {path} (" in capfd.readouterr().out
    for flag, message in (("--names=tim", "expected one of torchvision, timm"),
                          ("--format=onnx --names=timm", "goes with --format=safetensors")):
        assert cli.main([*flags, "--format=safetensors", *flag.split()]) == 2
        assert message in capfd.readouterr().err


@pytest.mark.parametrize("name,content,message", [
    ("a.pth", b"x", "not the weights of a network .neither of PyTorch's forms"),
    ("a.safetensors", b"no such thing", "not a safetensors file"),
])
def test_other_files_are_refused(tmp_path: Path, state, name, content, message) -> None:
    task, fresh = state
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        overlay(fresh, InitFrom(path=str(path)), task)


def test_models_without_published_names_are_refused(tmp_path: Path, state) -> None:
    task, fresh = state
    path = tmp_path / "a.safetensors"
    save_file({"a": np.zeros(1)}, path)
    with pytest.raises(UserError, match="MLP has no published names"):
        overlay(fresh, InitFrom(path=str(path)), dataclasses.replace(task, model=MLP()))
    with pytest.raises(UserError, match=r"names='tim': expected one of torchvision, timm.*'timm'"):
        weights.of_model(RESNET, "tim")
