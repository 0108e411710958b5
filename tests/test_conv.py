"""Every form of a convolution equals the plain one, alone and under JAX's transformations."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxdl import conv, layers
from jaxdl.errors import UserError
from jaxdl.tracing import tracing

Array = jax.Array

PATCHES = conv.Forms("patches", "patches", "patches")
STORED = conv.Forms("plain", "plain", "stored")
DOT = conv.Forms("winograd_dot", "winograd_dot", "winograd_dot")


def normal(seed: int, *shape: int) -> Array:
    return jax.random.normal(jax.random.key(seed), shape)


def assert_near(a: object, b: object) -> None:
    """Within 1e-5 of the largest value."""
    chex.assert_trees_all_equal_shapes(a, b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert jnp.abs(one - other).max() <= 1e-5 * jnp.abs(other).max()


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch):
    """Forces a choice of forms, whatever the shape."""
    def force(forms: conv.Forms) -> None:
        monkeypatch.setattr(conv, "choose", lambda *args: forms)
    return force


def convolve(x: Array, w: Array, stride: int = 1, padding: object = ((1, 1), (1, 1))) -> Array:
    return conv.convolve(x, w, (stride, stride), padding, dimension_numbers=conv.LAYOUT)


def all_three(x: Array, w: Array, stride: int, padding: object) -> tuple[Array, Array, Array]:
    y, pull = jax.vjp(lambda x, w: convolve(x, w, stride, padding), x, w)
    return y, *pull(normal(3, *y.shape).astype(y.dtype))


@pytest.mark.parametrize(("height", "width", "channels", "kernel", "stride", "padding"), [
    (8, 8, (3, 4), 3, 1, ((1, 1), (1, 1))), (7, 9, (4, 3), 3, 1, "SAME"),
    (9, 6, (3, 4), 3, 1, "VALID"), (5, 6, (4, 3), 3, 1, ((2, 0), (0, 3))),
    (9, 8, (3, 4), 3, 2, "SAME"), (8, 11, (4, 3), 5, 2, ((2, 2), (2, 2))),
    (11, 9, (3, 4), 7, 2, ((3, 3), (3, 3))), (7, 8, (3, 4), 1, 2, "VALID"),
    (6, 5, (4, 3), 1, 1, "SAME"), (7, 7, (3, 4), 2, 3, "VALID")])
def test_forms_equal_plain(forced, height: int, width: int, channels: tuple[int, int], kernel: int,
                           stride: int, padding: object):
    x, w = normal(0, 2, height, width, channels[0]), normal(1, kernel, kernel, *channels)
    three = jax.jit(all_three, static_argnums=(2, 3))
    with conv.plain():
        plain = three(x, w, stride, padding)
    forms = [PATCHES, STORED]
    if kernel == 3 and stride == 1:
        forms += [DOT, conv.Forms("winograd", "winograd", "winograd")]
    for choice in forms:
        forced(choice)
        three.clear_cache()  # which does not see the choice
        assert_near(three(x, w, stride, padding), plain)


def test_winograd_is_exact_enough_at_many_channels(forced):
    x, w = normal(0, 4, 8, 8, 256), normal(1, 3, 3, 256, 256)
    plain = convolve(x, w)
    for form in ("winograd", "winograd_dot"):
        forced(STORED._replace(forward=form))
        assert jnp.abs(convolve(x, w) - plain).max() < 6e-6 * jnp.abs(plain).max()


def test_the_choice():
    assert conv.choose((128, 32, 32, 16), (3, 3, 16, 16), (1, 1), True, False) == STORED
    large = ((128, 16, 16, 128), (3, 3, 128, 128), (1, 1))
    assert conv.choose(*large, False, False) == DOT
    assert conv.choose(*large, True, False) == ("winograd", "winograd", "winograd_dot")
    assert conv.choose(*large, True, True) == PATCHES
    strided = conv.choose((128, 32, 32, 16), (3, 3, 16, 32), (2, 2), True, False)
    assert (strided.forward, strided.input) == ("plain", "patches")


def grouped(x: Array, w: Array, stride: int, padding: object) -> Array:
    return conv.convolve(x, w, (stride, stride), padding, dimension_numbers=conv.LAYOUT,
                         feature_group_count=x.shape[-1] // w.shape[2])


@pytest.mark.parametrize(("kernel", "stride", "padding"), [
    ((3, 3), 1, "SAME"), ((3, 3), 2, "SAME"), ((5, 5), 2, ((2, 2), (2, 2))),
    ((2, 4), 3, ((0, 3), (1, 0))), ((3, 1), 1, "VALID"), ((1, 1), 2, "VALID")])
def test_depthwise_equals_plain(kernel: tuple[int, int], stride: int, padding: object) -> None:
    """With both gradients, forward mode, and (one of them) under vmap over images, weights or
    both."""
    mapped = ((0, None), (None, 0), (0, 0)) if kernel == (2, 4) else ()
    x, w = normal(0, 3, 2, 9, 8, 6), normal(1, 3, *kernel, 1, 6)

    def everything(x: Array, w: Array) -> tuple[Array, ...]:
        y, pull = jax.vjp(lambda x, w: grouped(x, w, stride, padding), x, w)
        tangent = jax.jvp(lambda w: grouped(x, w, stride, padding), (w,), (jnp.cos(w),))[1]
        return y, tangent, *pull(normal(2, *y.shape))

    found = []
    for context in (conv.plain(), tracing()):
        with context:
            text = str(jax.make_jaxpr(lambda x, w: grouped(x, w, stride, padding))(x[0], w[0]))
            found.append([jax.jit(everything)(x[0], w[0]), *(
                jax.jit(jax.vmap(everything, axes))(*(a if axis == 0 else a[0] for a, axis in zip(
                    (x, w), axes, strict=True))) for axes in mapped)])
            assert ("conv_general_dilated" in text) == (len(found) == 1)
    assert_near(found[1], found[0])


def test_other_groups_are_plain_and_large_kernels() -> None:
    x = normal(0, 2, 9, 9, 6)
    for w, fast in ((normal(1, 3, 3, 1, 6), True), (normal(1, 3, 3, 2, 6), False),
                    (normal(1, 3, 3, 1, 12), False), (normal(1, 9, 9, 1, 6), False)):
        notes: set[str] = set()
        with tracing(notes=notes):
            text = str(jax.make_jaxpr(lambda x, w: grouped(x, w, 1, "SAME"))(x, w))
        assert ("conv_general_dilated" not in text) == fast
        half = str(jax.make_jaxpr(lambda x, w: grouped(x, w, 1, "SAME"))(
            x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)))
        assert "conv_general_dilated" in half  # whose sums would be in bfloat16
        assert notes == ({"depthwise convolutions by sums"} if fast else set())


def test_layer_has_the_parameters_of_linen():
    x = normal(0, 2, 6, 6, 3)
    for options in ({}, {"use_bias": False, "strides": 2, "padding": 1, "name": "stem"},
                    {"padding": "VALID", "kernel_init": layers.he_normal},
                    {"kernel_dilation": 2}, {"feature_group_count": 3}):
        class Plain(nn.Module):
            @nn.compact
            def __call__(self, x: Array) -> Array:
                return nn.Conv(6, (3, 3), **options)(x)  # noqa: B023

        class Fast(nn.Module):
            @nn.compact
            def __call__(self, x: Array) -> Array:
                return layers.Conv(6, (3, 3), **options)(x)  # noqa: B023

        plain, fast = (module().init(jax.random.key(1), x) for module in (Plain, Fast))
        chex.assert_trees_all_equal(fast, plain)
        with tracing(loop=True):
            assert_near(Fast().apply(fast, x), Plain().apply(plain, x))


@pytest.mark.parametrize("forms", [PATCHES, DOT])
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_vmap_is_a_loop_of_single_gradients(forced, forms: conv.Forms, axes):
    forced(forms)
    x = normal(0, *(3,) * (axes[0] == 0), 2, 6, 6, 3)
    w = normal(1, *(3,) * (axes[1] == 0), 3, 3, 3, 4)

    def loss(x: Array, w: Array) -> Array:
        return jnp.square(convolve(x, w)).sum()

    gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))
    together = jax.jit(jax.vmap(gradient, axes))(x, w)
    single = [gradient(x if axes[0] is None else x[i], w if axes[1] is None else w[i])
              for i in range(3)]
    assert_near(together, jax.tree.map(lambda *parts: jnp.stack(parts), *single))
    summed = jax.grad(lambda x, w: jax.vmap(loss, axes)(x, w).sum(), (0, 1))(x, w)
    whole = tuple(part.sum(0) if axis is None else part
                  for part, axis in zip(together[1], axes, strict=True))
    assert_near(summed, whole)
    text = jax.jit(jax.vmap(gradient, axes)).lower(x, w).as_text()
    assert "convolution" not in text


def test_inside_a_loop_there_is_no_convolution():
    x, w = normal(0, 3, 2, 6, 6, 3), normal(1, 3, 3, 3, 3)

    def train(w: Array, loop: bool) -> tuple[Array, Array]:
        def step(w: Array, x: Array) -> tuple[Array, Array]:  # anew: scan keeps traces by function
            loss, g = jax.value_and_grad(lambda w: jnp.square(convolve(x, w)).mean())(w)
            return w - 0.1 * g, loss

        with tracing(loop=loop):
            return jax.lax.scan(step, w, x)

    looped = jax.jit(train, static_argnums=1)
    assert_near(looped(w, True), looped(w, False))
    assert "convolution" not in looped.lower(w, True).as_text()
    assert "convolution" in looped.lower(w, False).as_text()


@pytest.mark.parametrize("forms", [PATCHES, DOT, conv.Forms("winograd", "plain", "patches")])
def test_gradient_of_a_gradient(forced, forms: conv.Forms):
    x, w = normal(0, 2, 6, 6, 2), normal(1, 3, 3, 2, 3)

    def penalty(x: Array, w: Array) -> Array:
        g = jax.grad(lambda x, w: jnp.tanh(convolve(x, w)).sum(), (0, 1))(x, w)
        return sum(jnp.square(part).sum() for part in g)

    both = jax.jit(jax.grad(penalty, (0, 1)))
    with conv.plain():
        plain = both(x, w)
    forced(forms)
    both.clear_cache()  # which does not see the choice
    assert_near(both(x, w), plain)


def test_forward_mode_needs_the_plain_form(forced):
    forced(PATCHES)
    x, w = normal(0, 1, 4, 4, 1), normal(1, 3, 3, 1, 1)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda w: convolve(x, w), (w,), (w,))
    with conv.plain():
        tangent = jax.jvp(lambda w: convolve(x, w), (w,), (w,))[1]
    assert_near(tangent, convolve(x, w))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_other_types_are_plain(dtype: jnp.dtype):
    with jax.enable_x64(True), tracing(loop=True):
        x, w = normal(0, 2, 6, 6, 3).astype(dtype), normal(1, 3, 3, 3, 4).astype(dtype)
        fast = all_three(x, w, 1, "SAME")
        with conv.plain():
            chex.assert_trees_all_equal(fast, all_three(x, w, 1, "SAME"))
        assert fast[0].dtype == dtype


def test_the_switch(monkeypatch: pytest.MonkeyPatch):
    x, w = normal(0, 2, 6, 6, 3), normal(1, 3, 3, 3, 4)

    def text() -> str:
        with tracing(loop=True):
            return jax.jit(lambda x, w: convolve(x, w)).lower(x, w).as_text()

    assert "convolution" not in text()
    monkeypatch.setenv("JAXDL_CONV", "plain")
    assert "convolution" in text()
    monkeypatch.setenv("JAXDL_CONV", "plane")
    with pytest.raises(UserError, match="JAXDL_CONV=plane: expected plain or fast"):
        text()
    monkeypatch.delenv("JAXDL_CONV")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "convolution" in text()


@pytest.mark.parametrize("forms", [
    PATCHES, DOT, conv.Forms("winograd", "winograd", "winograd")])
def test_a_split_batch_is_not_gathered(forced, forms: conv.Forms):
    forced(forms)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, w = normal(0, 16, 8, 8, 3), normal(1, 3, 3, 3, 4)
    whole = all_three(x, w, 1, "SAME")
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    everywhere = jax.device_put(w, NamedSharding(mesh, PartitionSpec()))
    g = jax.device_put(normal(3, *whole[0].shape), split.sharding)

    def three(x: Array, w: Array, g: Array) -> tuple[Array, ...]:
        y, pull = jax.vjp(lambda x, w: convolve(x, w, 1, "SAME"), x, w)
        return y, *pull(g)

    step = jax.jit(three).lower(split, everywhere, g).compile()
    assert_near(jax.device_get(step(split, everywhere, g)), jax.device_get(whole))
    text = step.as_text()
    for moved in ("all-gather", "all-to-all", "collective-permute"):
        assert moved not in text
    assert "all-reduce" in text
