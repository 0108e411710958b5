"""Models: published sizes, shapes, what training changes, types, and one block against NumPy."""

import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdl import config
from jaxdl.errors import UserError
from jaxdl.layers import ACTIVATIONS, ConvTranspose, Dropout, activate, he_normal, rising
from jaxdl.models.capsules import CapsNet, route, squash
from jaxdl.models.cnn import CNN
from jaxdl.models.convnext import ConvNeXt
from jaxdl.models.mixer import Mixer, MixerBlock
from jaxdl.models.mlp import MLP
from jaxdl.models.multi_scale import MultiScaleCNN
from jaxdl.models.resnet import Block, ResNet
from jaxdl.models.resnet_v2 import ResNetV2
from jaxdl.models.spatial_transformer import IDENTITY, SpatialTransformer, transform
from jaxdl.models.vit import EncoderBlock, VisionTransformer
from jaxdl.models.wide_resnet import WideBlock, WideResNet

GREY, SMALL, LARGE = (2, 28, 28, 1), (2, 32, 32, 3), (2, 224, 224, 3)


def initial(model, shape):
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return model.init(keys, jnp.zeros(shape), train=False)


def abstract(model, shape):
    return jax.eval_shape(lambda: initial(model, shape))


def size(tree):
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def resnet_arithmetic(depth, projection):
    """3 x 3 kernels, two numbers per normalised channel, and the head, counted one by one."""
    conv = lambda a, b, k=3: k * k * a * b + 2 * b  # noqa: E731
    total, before = conv(3, 16), 16
    for channels in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            total += conv(before, channels) + conv(channels, channels)
            if projection and before != channels:
                total += conv(before, channels, 1)
            before = channels
    return total + 64 * 10 + 10


@pytest.mark.parametrize("model,shape,count", [
    (ResNet(depth=20), SMALL, 269_722),
    (ResNet(depth=20, shortcut="projection"), SMALL, 272_474),
    (ResNet(depth=32), SMALL, 464_154),
    (ResNet(depth=44), SMALL, 658_586),
    (ResNet(depth=56), SMALL, 853_018),
    (ResNet(depth=110), SMALL, 1_727_962),
    (ResNet(depth=18, stem="cifar"), SMALL, 11_173_962),
    (ResNet(depth=18, classes=1000), LARGE, 11_689_512),
    (ResNet(depth=34, classes=1000), LARGE, 21_797_672),
    (ResNet(depth=50, classes=1000), LARGE, 25_557_032),
    (ResNet(depth=101, classes=1000), LARGE, 44_549_160),
    (ResNet(depth=152, classes=1000), LARGE, 60_192_808),
    (WideResNet(depth=28, width=10), SMALL, 36_479_194),
    (WideResNet(depth=16, width=4), SMALL, 2_748_890),
    (MLP(), GREY, 235_146),
    (CNN(), GREY, 421_642),
    (CNN(channels=(6, 16), kernel=5, padding="VALID", pool="average", dense=(120, 84)),
     (2, 32, 32, 1), 61_706),
    (ResNet(depth=50, classes=1000, groups=32, group_width=4), LARGE, 25_028_904),
    (ResNet(depth=50, classes=1000, squeeze=16), LARGE, 28_088_024),
    (ResNet(depth=50, classes=1000, groups=32, group_width=4, squeeze=16), LARGE, 27_559_896),
    (ResNet(depth=50, classes=1000, group_width=128), LARGE, 68_883_240),
    (ResNetV2(depth=50, form="imagenet", classes=1000), LARGE, 25_549_352),
    (ResNetV2(depth=164, block="bottleneck"), SMALL, 1_703_258),
    (ConvNeXt(classes=1000), LARGE, 28_589_128),
    (VisionTransformer(classes=1000), LARGE, 86_567_656),
    (VisionTransformer(patch=32, classes=1000), LARGE, 88_224_232),
    (VisionTransformer(width=384, heads=6, classes=1000), LARGE, 22_050_664),
    (Mixer(classes=1000), LARGE, 59_880_472),
    (Mixer(width=512, layers=8, tokens=256, classes=1000), LARGE, 18_528_264),
    (CapsNet(), GREY, 8_215_568),
    (CapsNet(decoder=()), GREY, 6_804_224),
], ids=lambda x: x if isinstance(x, int) else "")
def test_published_parameter_counts(model, shape, count):
    assert size(abstract(model, shape)["params"]) == count


@pytest.mark.parametrize("depth", [20, 44, 110])
@pytest.mark.parametrize("projection", [False, True])
def test_resnet_counts_by_arithmetic(depth, projection):
    model = ResNet(depth=depth, shortcut="projection" if projection else "pad")
    assert size(abstract(model, SMALL)["params"]) == resnet_arithmetic(depth, projection)


@pytest.mark.parametrize("model,shape", [
    (MLP(widths=(), classes=7), GREY),
    (MLP(widths=(5,), classes=7, batch_norm=True, dropout=0.1, activation="gelu"), GREY),
    (CNN(channels=(4, 8, 8), classes=7, dense=(), average=True, repeats=2, batch_norm=True), SMALL),
    (CNN(channels=(4,), classes=7, pool="none", dropout=0.5, stage_dropout=0.2), GREY),
    (ResNet(depth=8, classes=7), SMALL),
    (ResNet(depth=20, classes=7), (2, 31, 33, 1)),
    (ResNet(depth=50, classes=7, zero_scale=True, shortcut="pad"), LARGE),
    (ResNet(depth=20, classes=7, stem="imagenet"), LARGE),
    (WideResNet(depth=10, width=1, classes=7, dropout=0.3), SMALL),
    (ResNet(depth=8, classes=7, squeeze=4, stochastic_depth=0.2), SMALL),
    (ResNet(depth=50, classes=7, groups=2, group_width=32), LARGE),
    (ResNetV2(depth=8, classes=7, stochastic_depth=0.2), SMALL),
    (ResNetV2(depth=11, classes=7, block="bottleneck"), (2, 31, 33, 1)),
    (ConvNeXt(blocks=(1, 2), channels=(4, 8), classes=7, patch=1, stochastic_depth=0.1), GREY),
    (VisionTransformer(patch=4, width=8, layers=2, heads=2, classes=7, dropout=0.1,
                       stochastic_depth=0.1), SMALL),
    (VisionTransformer(patch=7, width=8, layers=1, heads=1, classes=7, pool="mean"), GREY),
    (Mixer(patch=4, width=8, tokens=4, layers=2, classes=7, stochastic_depth=0.1), SMALL),
    (SpatialTransformer(localisation=CNN(channels=(4,), dense=(), classes=8),
                        classifier=CNN(channels=(4,), classes=7), slow=0.1), GREY),
    (MultiScaleCNN(channels=(4, 8), classes=7, batch_norm=True, dropout=0.1), (2, 30, 29, 1)),
])
@pytest.mark.parametrize("train", [False, True])
def test_shapes_and_bfloat16(model, shape, train):
    """Everything between a bfloat16 input with bfloat16 parameters and the logits is bfloat16, but
    the statistics, which stay float32."""
    variables = abstract(model, shape)
    half = lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(  # noqa: E731
        x.shape, jnp.bfloat16), tree)

    def run(variables, x):
        return model.apply(variables, x, train=train, rngs={"dropout": jax.random.key(0)},
                           mutable=["batch_stats"])

    for cast, dtype in ((lambda tree: tree, jnp.float32), (half, jnp.bfloat16)):
        logits, changed = jax.eval_shape(
            run, {**variables, "params": cast(variables["params"])},
            cast(jax.ShapeDtypeStruct(shape, jnp.float32)))
        chex.assert_shape(logits, (2, 7))
        assert logits.dtype == dtype
        assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(changed))


def test_bfloat16_multiplies_in_bfloat16():
    model = ResNet(depth=8)
    variables = abstract(model, SMALL)
    cast = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), variables["params"])
    text = str(jax.make_jaxpr(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))(
        {**variables, "params": cast}, jax.ShapeDtypeStruct(SMALL, jnp.bfloat16)))
    products = [line for line in text.splitlines() if "_general" in line]
    assert len(products) == 8 and all(":bf16" in line for line in products)


@pytest.mark.parametrize("depth", [0, 19, 21, 49, 1000])
def test_resnet_depth_is_checked(depth):
    with pytest.raises(UserError, match=rf"depth={depth} is neither 6n \+ 2 .*: \d+, \d+\.$"):
        ResNet(depth=depth)


def test_wide_resnet_depth_is_checked():
    with pytest.raises(UserError, match=r"depth=27 is not 6n \+ 4; nearest: 22, 28\.$"):
        WideResNet(depth=27)
    with pytest.raises(UserError, match="nearest: 18, 20"):
        ResNet(depth=19)


def test_activations_by_name():
    x = jnp.linspace(-3, 3, 7)
    for name in ACTIVATIONS:
        chex.assert_shape(activate(x, name), (7,))
    with pytest.raises(UserError, match="Did you mean 'relu'"):
        activate(x, "relo")


@pytest.mark.parametrize("model", [MLP(), CNN(), ResNet(), WideResNet(), Dropout(0.5)])
def test_fields_are_checked_and_described(model):
    config.check(model)
    assert config.from_json(config.to_json(model)) == model
    attributes = (type(model).__doc__ or "").split("Attributes:")[1]
    for name in config.children(model):
        assert f"\n      {name}: " in attributes


def test_training_uses_and_updates_the_statistics_of_the_batch():
    model = MLP(widths=(4,), classes=3, batch_norm=True)
    x = jax.random.normal(jax.random.key(2), (16, 5, 1, 1))
    variables = initial(model, x.shape)
    train, changed = model.apply(variables, x, train=True, mutable=["batch_stats"])
    evaluated, unchanged = model.apply(variables, x, train=False, mutable=["batch_stats"])
    chex.assert_trees_all_equal(unchanged["batch_stats"], variables["batch_stats"])
    assert not np.allclose(train, evaluated, atol=1e-3)

    before = np.asarray(x).reshape(16, 5) @ np.asarray(variables["params"]["dense1"]["kernel"])
    chex.assert_trees_all_close(changed["batch_stats"]["norm1"],
                                {"mean": 0.1 * before.mean(0), "var": 0.9 + 0.1 * before.var(0)},
                                atol=1e-5)


# Dropout.


def test_dropout_zeroes_and_scales():
    x = jnp.ones((200, 100))
    layer = Dropout(0.25)
    y = np.asarray(layer.apply({}, x, True, rngs={"dropout": jax.random.key(0)}))
    chex.assert_trees_all_close(np.unique(y), np.array([0, 4 / 3], np.float32), atol=1e-6)
    assert abs((y == 0).mean() - 0.25) < 0.02
    other = layer.apply({}, x, True, rngs={"dropout": jax.random.key(1)})
    assert not np.array_equal(y, other)
    for same in (layer.apply({}, x, False), Dropout(None).apply({}, x, True),
                 Dropout(0.).apply({}, x, True, rngs={"dropout": jax.random.key(0)})):
        chex.assert_trees_all_equal(same, x)
    half = layer.apply({}, x.astype(jnp.bfloat16), True, rngs={"dropout": jax.random.key(0)})
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("model", [
    MLP(widths=(8,), dropout=0.5), CNN(channels=(2,), dense=(4,), dropout=0.5, stage_dropout=0.1)],
    ids=lambda m: type(m).__name__)
def test_dropout_may_be_traced(model):
    shape = (2, 8, 8, 3)
    x = jax.random.normal(jax.random.key(3), shape)
    variables = jax.tree.map(jnp.ones_like, abstract(model, shape))
    traces = []

    @jax.jit
    def run(rate):
        traces.append(rate)
        return model.clone(dropout=rate).apply(variables, x, train=True, mutable=["batch_stats"],
                                               rngs={"dropout": jax.random.key(0)})[0]

    plain = jax.jit(lambda: model.apply(variables, x, train=True, mutable=["batch_stats"],
                                        rngs={"dropout": jax.random.key(0)})[0])()
    chex.assert_trees_all_close(run(0.5), plain, rtol=1e-5, atol=1e-5)
    assert not np.allclose(run(0.), plain, atol=1e-3)
    assert len(traces) == 1


def test_dropout_of_a_wide_resnet_may_be_traced():
    model = WideResNet(depth=10, width=1)
    logits, _ = jax.eval_shape(jax.jit(lambda rate: model.clone(dropout=rate).init_with_output(
        {"params": jax.random.key(0), "dropout": jax.random.key(1)}, jnp.zeros(SMALL),
        train=True)), 0.3)
    chex.assert_shape(logits, (2, 10))


# One block of each kind against plain NumPy.


def numpy_conv(x, kernel, stride):
    """Cross-correlation of x [B, H, W, C] with kernel [k, k, C, D], (k - 1) / 2 zeros around."""
    k = kernel.shape[0]
    p = k // 2
    x = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    rows = [[np.tensordot(x[:, i:i + k, j:j + k], kernel, 3)
             for j in range(0, x.shape[2] - k + 1, stride)]
            for i in range(0, x.shape[1] - k + 1, stride)]
    return np.stack([np.stack(row, 1) for row in rows], 1)


def numpy_norm(x, params):
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(variance + 1e-5) * params["scale"] + params["bias"]


def random_variables(model, shape):
    rng = np.random.default_rng(4)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape), train=True))
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), variables)


def applied(model, variables, x):
    stats = jax.tree.map(jnp.abs, variables["batch_stats"])
    return model.apply({**variables, "batch_stats": stats}, x, train=True,
                       mutable=["batch_stats"])[0]


@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_basic_block_against_numpy(shortcut):
    model = Block(channels=6, stride=2, bottleneck=False, shortcut=shortcut, zero_scale=False)
    x = np.random.default_rng(5).normal(size=(2, 6, 6, 3)).astype(np.float32)
    variables = random_variables(model, x.shape)
    p = variables["params"]
    y = np.maximum(numpy_norm(numpy_conv(x, p["conv1"]["kernel"], 2), p["norm1"]), 0)
    y = numpy_norm(numpy_conv(y, p["conv2"]["kernel"], 1), p["norm2"])
    if shortcut == "pad":
        short = np.concatenate([np.zeros((2, 3, 3, 1)), x[:, ::2, ::2], np.zeros((2, 3, 3, 2))], 3)
    else:
        short = numpy_norm(numpy_conv(x, p["shortcut_conv"]["kernel"], 2), p["shortcut_norm"])
    want = np.maximum(short + y, 0).astype(np.float32)
    chex.assert_trees_all_close(applied(model, variables, x), want, atol=2e-5, rtol=1e-4)


def test_wide_block_against_numpy():
    model = WideBlock(channels=4, stride=2, dropout=None)
    x = np.random.default_rng(5).normal(size=(2, 6, 6, 3)).astype(np.float32)
    variables = random_variables(model, x.shape)
    p = variables["params"]
    y = np.maximum(numpy_norm(x, p["norm1"]), 0)
    short = numpy_conv(y, p["shortcut_conv"]["kernel"], 2)
    y = np.maximum(numpy_norm(numpy_conv(y, p["conv1"]["kernel"], 2), p["norm2"]), 0)
    want = (short + numpy_conv(y, p["conv2"]["kernel"], 1)).astype(np.float32)
    chex.assert_trees_all_close(applied(model, variables, x), want, atol=2e-4, rtol=1e-4)


def test_bottleneck_strides_in_its_3x3_convolution():
    model = Block(channels=4, stride=2, bottleneck=True, shortcut="projection", zero_scale=True)
    x = jnp.zeros((1, 8, 8, 3))
    _, variables = jax.eval_shape(lambda: model.init_with_output(
        jax.random.key(0), x, train=True, capture_intermediates=True, mutable=True))
    sizes = {name: variables["intermediates"][name]["__call__"][0].shape
             for name in ("conv1", "conv2", "conv3")}
    assert sizes == {"conv1": (1, 8, 8, 4), "conv2": (1, 4, 4, 4), "conv3": (1, 4, 4, 16)}


def test_zero_scale_starts_as_the_identity():
    model = Block(channels=3, stride=1, bottleneck=False, shortcut="pad", zero_scale=True)
    x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    y, variables = jax.jit(lambda: model.init_with_output(jax.random.key(1), x, train=True))()
    chex.assert_trees_all_equal(y, nn.relu(x))
    scales = [variables["params"][name]["scale"].sum() for name in ("norm1", "norm2")]
    assert scales == [3, 0]


def test_convolutions_start_he_normal():
    kernel = he_normal(jax.random.key(0), (3, 3, 32, 256))
    assert abs(np.std(kernel) / np.sqrt(2 / (9 * 256)) - 1) < 0.02
    model = Block(channels=64, stride=1, bottleneck=False, shortcut="pad", zero_scale=False)
    kernel = jax.jit(model.init, static_argnames="train")(
        jax.random.key(0), jnp.zeros((1, 4, 4, 16)), train=False)["params"]["conv1"]["kernel"]
    assert abs(np.std(kernel) / np.sqrt(2 / (9 * 64)) - 1) < 0.05


def numpy_attention(x, params, heads):
    """softmax(q k^T / sqrt(D)) v for each head, one token at a time."""
    project = lambda y, p: y @ p["kernel"] + p["bias"]  # noqa: E731
    q, k, v = np.split(project(x, params["query_key_value"]), 3, -1)
    out, size = np.zeros_like(q), q.shape[-1] // heads
    for b in range(len(x)):
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            scores = q[b][:, part] @ k[b][:, part].T / np.sqrt(size)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            out[b][:, part] = weights / weights.sum(-1, keepdims=True) @ v[b][:, part]
    return project(out, params["project"])


def numpy_layer_norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def numpy_mlp(x, first, second):
    x = x @ first["kernel"] + first["bias"]
    x = np.vectorize(lambda a: 0.5 * a * (1 + math.erf(a / 2 ** 0.5)))(x)  # exact GELU
    return x @ second["kernel"] + second["bias"]


def test_encoder_block_against_numpy():
    block = EncoderBlock(heads=2, dropout=None, stochastic_depth=None)
    variables = random_variables(block, (2, 5, 8))
    x = np.random.default_rng(0).normal(size=(2, 5, 8))
    p = jax.tree.map(np.asarray, variables["params"])
    y = x + numpy_attention(numpy_layer_norm(x, p["norm1"]), p, 2)
    expected = y + numpy_mlp(numpy_layer_norm(y, p["norm2"]), p["dense1"], p["dense2"])
    np.testing.assert_allclose(block.apply(variables, x, train=False), expected, rtol=1e-4,
                               atol=1e-4)


def test_mixer_block_against_numpy():
    block = MixerBlock(tokens=3, stochastic_depth=None)
    variables = random_variables(block, (2, 5, 8))
    x = np.random.default_rng(0).normal(size=(2, 5, 8))
    p = jax.tree.map(np.asarray, variables["params"])
    y = numpy_layer_norm(x, p["norm1"]).swapaxes(1, 2)
    y = x + numpy_mlp(y, p["tokens_dense1"], p["tokens_dense2"]).swapaxes(1, 2)
    expected = y + numpy_mlp(numpy_layer_norm(y, p["norm2"]), p["channels_dense1"],
                             p["channels_dense2"])
    np.testing.assert_allclose(block.apply(variables, x, train=False), expected, rtol=1e-4,
                               atol=1e-4)


def test_routing_against_the_papers_procedure():
    u = np.random.default_rng(0).normal(size=(6, 3, 4))  # [lower, upper, D]
    squashed = lambda s: s * (s @ s) / (1 + s @ s) / np.sqrt(s @ s)  # noqa: E731
    b = np.zeros((6, 3))
    for i in range(3):
        c = np.exp(b) / np.exp(b).sum(1, keepdims=True)
        v = np.stack([squashed((c[:, j, None] * u[:, j]).sum(0)) for j in range(3)])
        if i < 2:
            b = b + np.einsum("iud,ud->iu", u, v)
    np.testing.assert_allclose(route(jnp.asarray(u)[None], 3)[0], v, rtol=1e-5)
    assert np.isfinite(jax.grad(lambda s: squash(s).sum())(jnp.zeros(3))).all()


def test_a_spatial_transformer_starts_as_its_classifier_and_learns_to_turn():
    model = SpatialTransformer(localisation=CNN(channels=(4,), dense=(), classes=8),
                               classifier=CNN(channels=(4,), classes=7))
    x = jax.random.normal(jax.random.key(2), (2, 9, 12, 1))
    variables = initial(model, x.shape)
    seen = model.apply(variables, x, method=lambda m, x: m.turned(x))
    np.testing.assert_allclose(seen, x, atol=1e-5)
    plain = model.classifier.apply({"params": variables["params"]["classifier"]}, x, train=False)
    np.testing.assert_allclose(model.apply(variables, x, train=False), plain, atol=1e-4)
    grads = jax.grad(lambda v: (model.apply(v, x, train=True) ** 2).sum())(variables)["params"]
    assert np.abs(grads["theta"]["bias"]).min() > 0


def test_an_affine_map_says_where_a_value_comes_from():
    image = jnp.arange(12.).reshape(3, 4, 1)
    np.testing.assert_allclose(transform(image, jnp.array(IDENTITY)), image, atol=1e-5)
    mirrored = transform(image, jnp.array([-1., 0, 0, 0, 1, 0]))
    np.testing.assert_allclose(mirrored, image[:, ::-1], atol=1e-5)
    down = transform(image, jnp.array([1., 0, 0, 0, 1, -1]))  # one row of three is 1 in [-1, 1]
    np.testing.assert_allclose(down, jnp.pad(image[:-1], ((1, 0), (0, 0), (0, 0))), atol=1e-5)


@pytest.mark.parametrize("make,shape,message", [
    (lambda: ResNet(depth=20, groups=2), None, "depth=20 does not have; 50 does"),
    (lambda: ResNetV2(depth=19), None, r"depth=19 is not 6n \+ 2, .*; nearest: 14, 20"),
    (lambda: ResNetV2(depth=21, block="bottleneck"), None, r"9n \+ 2, .*; nearest: 20, 29"),
    (lambda: ResNetV2(depth=20, form="imagenet"), None, "expected one of 50, 101, 152, 200"),
    (lambda: ConvNeXt(blocks=(1,)), None, "blocks has 1 stages, channels 4"),
    (lambda: ConvNeXt(), GREY, "28 x 28; patch=4 and 4 stages need 32 x 32"),
    (lambda: VisionTransformer(width=10, heads=4), None, "width=10 is not a multiple of heads=4"),
    (lambda: VisionTransformer(), GREY, "28 x 28 are not made of whole patches of 16 x 16"),
    (lambda: CapsNet(), (2, 8, 8, 1), "8 x 8; two convolutions with kernel=9 need 17 x 17"),
    (lambda: MultiScaleCNN(channels=(2, 2, 2, 2)), (2, 8, 8, 1), "4 stages need 16 x 16"),
])
def test_sizes_that_cannot_be_are_told_in_one_line(make, shape, message):
    with pytest.raises(UserError, match=message):
        abstract(make(), shape)


def test_an_mlp_may_normalise_after_its_nonlinearity():
    x = jax.random.normal(jax.random.key(0), (64, 9))
    for last, least in ((True, -3.), (False, 0.)):
        model = MLP(widths=(4,), batch_norm=True, norm_last=last, classes=4)
        variables = model.init(jax.random.key(1), x, train=False)
        _, seen = model.apply(variables, x, train=True, capture_intermediates=True,
                              mutable=["intermediates", "batch_stats"])
        normalised = np.asarray(seen["intermediates"]["norm1"]["__call__"][0])
        np.testing.assert_allclose(normalised.mean(0), 0, atol=1e-5)
        head = np.asarray(seen["intermediates"]["head"]["__call__"][0])
        given = normalised if last else np.maximum(normalised, 0)
        p = variables["params"]["head"]
        np.testing.assert_allclose(head, given @ p["kernel"] + p["bias"], atol=1e-5)
        assert (given.min() < 0) == (least < 0)


def test_rates_of_blocks_rise_to_the_last():
    assert [rising(0.3, i, 3) for i in range(4)] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert rising(0.3, 0, 0) == 0 and rising(None, 2, 3) is None


@pytest.mark.parametrize("options", [{"dense": (4,)}, {"average": True, "dense": ()}])
def test_a_cnn_tells_where_nothing_is_left_of_an_image(options):
    model = CNN(channels=(2, 3, 4), kernel=5, padding="VALID", **options)
    with pytest.raises(UserError, match="CNN: nothing is left of images of 28 x 28 after 3 of 3 "
                                        "stages with kernel=5; fewer channels"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(GREY), train=False))


@pytest.mark.parametrize("shape", [(2, 4, 4, 3), (1, 1, 5, 2)])
def test_a_transposed_convolution_is_flaxs(shape: tuple[int, ...]) -> None:
    x = jax.random.normal(jax.random.key(0), shape)
    ours, theirs = ConvTranspose(5), nn.ConvTranspose(5, (4, 4), (2, 2))
    variables = jax.jit(theirs.init)(jax.random.key(1), x)
    chex.assert_trees_all_equal(jax.jit(ours.init)(jax.random.key(1), x), variables)
    variables = jax.tree.map(lambda v: v + 0.1, variables)  # the bias too
    found = [jax.jit(jax.value_and_grad(lambda v, x, m=m: jnp.sin(m.apply(v, x)).sum(), (0, 1)))(
        variables, x) for m in (ours, theirs)]
    chex.assert_trees_all_close(*found, rtol=1e-4, atol=1e-5)
    assert ours.apply(variables, x).shape == (shape[0], 2 * shape[1], 2 * shape[2], 5)
