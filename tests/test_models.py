"""The networks: sizes, shapes, dtypes, statistics, that they learn, and their convolution against ``lax``'s."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from rvsm_jax import models
from rvsm_jax.models.blocks import block_convolution, convolve_max_pool
from rvsm_jax.models.convolution import conv_general_dilated, product_gradient_convolution
from rvsm_jax.models.narrow import columns_at_once, image_product, narrow_convolution, smaller_than_kernel
from rvsm_jax.models.normalisation import BatchNorm
from rvsm_jax.models.pooling import max_pool

LAYOUT = ("NHWC", "HWIO", "NHWC")
NETWORKS = {
    "lenet_300_100": (models.lenet_300_100, (28, 28, 1)),
    "lenet5": (models.lenet5, (28, 28, 1)),
    "resnet18": (functools.partial(models.resnet18, width=4), (8, 8, 3)),
    "preact_resnet": (functools.partial(models.preact_resnet, width=4), (8, 8, 3)),
}


@functools.cache
def build(name: str) -> models.Network:
    return NETWORKS[name][0](jax.random.key(0))


def images(name: str, count: int = 4, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(1), (count, *NETWORKS[name][1])).astype(dtype)


def normal(seed: int, *shape: int):
    return np.random.default_rng(seed).normal(size=shape)


def weights(params) -> int:
    return sum(x.size for path, x in jax.tree.leaves_with_path(params) if path[-1].key == "kernel")


def shapes_of(make) -> models.Network:
    return jax.eval_shape(lambda key: make(key)._replace(forward=None), jax.random.key(0))


@pytest.mark.parametrize(("make", "count"), [(models.lenet_300_100, 266_200), (models.lenet5, 430_500)])
def test_lenet_has_the_published_number_of_weights(make, count):
    assert weights(shapes_of(make).params) == count


def test_lenet5_layers_are_caffes():
    params = shapes_of(models.lenet5).params
    shapes = [x.shape for path, x in jax.tree.leaves_with_path(params) if path[-1].key == "kernel"]
    assert shapes == [(5, 5, 1, 20), (5, 5, 20, 50), (800, 500), (500, 10)]


@pytest.mark.parametrize(
    ("make", "count"),
    [
        (models.resnet18, 11_173_962),  # stem, 16 convolutions, 3 shortcuts, 20 BatchNorms, dense 512 x 10 + 10
        (models.preact_resnet, 272_282),
        (functools.partial(models.preact_resnet, depth=56), 855_578),
    ],
)
def test_resnet_parameter_counts(make, count):
    assert sum(x.size for x in jax.tree.leaves(shapes_of(make).params)) == count


@pytest.mark.parametrize("depth", [8, 20, 32, 38, 44, 56])
def test_every_preact_depth_has_its_number_of_convolutions(depth):
    params = shapes_of(functools.partial(models.preact_resnet, depth=depth)).params
    kernels = [path for path, _ in jax.tree.leaves_with_path(params) if path[-1].key == "kernel"]
    assert len(kernels) == depth + 2  # depth counts the dense layer, but not the two shortcuts


def test_wrong_arguments_name_what_is_allowed():
    with pytest.raises(ValueError, match=r"one of 8, 20, 32, 38, 44, 56, got 18"):
        models.preact_resnet(jax.random.key(0), depth=18)
    with pytest.raises(ValueError, match=r"positive.*got 0"):
        models.resnet18(jax.random.key(0), width=0)
    with pytest.raises(ValueError, match=r"16 x 16 pixels, got 8 x 8"):
        models.lenet5(jax.random.key(0), image_shape=(8, 8, 1))


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_is_pure_and_traced_once(name):
    network, traces = build(name), []

    def counted(params, state, x):
        traces.append(1)
        return network.forward(params, state, x, None, True)

    step = jax.jit(counted)
    logits, state = step(network.params, network.state, images(name))
    again, _ = step(network.params, network.state, images(name))
    step(network.params, state, images(name))
    assert logits.shape == (4, 10) and len(traces) == 1
    np.testing.assert_array_equal(logits, again)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, network.state)


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_stays_bfloat16_and_statistics_float32(name):
    network = build(name)
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), network.params)
    forward = jax.eval_shape(
        lambda p, s, x: network.forward(p, s, x, None, True), params, network.state, images(name, dtype=jnp.bfloat16)
    )
    logits, state = forward
    assert logits.dtype == jnp.bfloat16
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state))


@pytest.mark.parametrize("name", ["lenet_300_100", "lenet5", "preact_resnet"])
def test_a_network_fits_one_batch(name):
    network, x, labels = build(name), images(name, 8), jnp.arange(8)
    tx = optax.sgd(0.02, momentum=0.9)

    @jax.jit
    def step(params, state, opt):
        def loss(p):
            logits, new = network.forward(p, state, x, None, True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        (value, state_), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt = tx.update(grads, opt, params)
        return value, optax.apply_updates(params, updates), state_, opt

    params, state, opt, losses = network.params, network.state, tx.init(network.params), []
    for _ in range(20):
        value, params, state, opt = step(params, state, opt)
        losses.append(float(value))
    assert losses[-1] < 0.6 * losses[0]


def test_evaluation_leaves_the_state_and_images_independent():
    network, x = build("preact_resnet"), images("preact_resnet", 4)
    forward = jax.jit(network.forward, static_argnums=4)
    logits, state = forward(network.params, network.state, x, None, False)
    jax.tree.map(np.testing.assert_array_equal, state, network.state)
    np.testing.assert_allclose(
        forward(network.params, network.state, x[:1], None, False)[0], logits[:1], rtol=1e-5, atol=1e-5
    )


def test_batch_norm_equals_numpy_in_training_and_evaluation():
    norm = BatchNorm(3, momentum=0.8)
    norm.scale[...], norm.bias[...] = jnp.array([1.0, 2.0, 0.5]), jnp.array([0.0, -1.0, 3.0])
    network = models.functional(norm)
    x = np.float32(5 + 2 * normal(0, 4, 6, 6, 3))
    mean, var, n = x.mean((0, 1, 2)), x.var((0, 1, 2)), 4 * 6 * 6
    scale, bias = np.asarray(norm.scale[...]), np.asarray(norm.bias[...])
    y, state = network.forward(network.params, network.state, jnp.asarray(x), None, True)
    np.testing.assert_allclose(y, scale * (x - mean) / np.sqrt(var + 1e-5) + bias, atol=1e-4)
    np.testing.assert_allclose(state["mean"], 0.2 * mean, rtol=1e-5)
    np.testing.assert_allclose(state["var"], 0.8 + 0.2 * var * n / (n - 1), rtol=1e-5)
    z, same = network.forward(network.params, state, jnp.asarray(x), None, False)
    mean, var = np.asarray(state["mean"]), np.asarray(state["var"])
    expected = scale * (x - mean) / np.sqrt(var + 1e-5) + bias
    np.testing.assert_allclose(z, expected, atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, same, state)


def test_statistics_are_those_of_the_global_batch():
    network, x = build("preact_resnet"), images("preact_resnet", 16)
    forward = jax.jit(network.forward, static_argnums=4)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    one, many = (forward(network.params, network.state, v, None, True) for v in (x, spread))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4), one, many)


def test_functional_seeds_dropout_from_the_key():
    network = models.functional(nnx.Sequential(nnx.Linear(6, 6, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(1))))
    call = functools.partial(network.forward, network.params, network.state, jnp.ones((2, 6)))
    keys = jax.random.split(jax.random.key(2))
    np.testing.assert_array_equal(call(keys[0], True)[0], call(keys[0], True)[0])
    assert not np.array_equal(call(keys[0], True)[0], call(keys[1], True)[0])
    np.testing.assert_array_equal(call(None, False)[0], call(keys[0], False)[0])
    with pytest.raises(ValueError, match="key is None"):
        call(None, True)


def reference(x, kernel, strides, pads):
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=LAYOUT)


def check_gradients(ours, theirs, x, kernel, tolerance):
    shape = jax.eval_shape(theirs, x, kernel)
    g = jnp.asarray(normal(7, *shape.shape), shape.dtype)

    @functools.partial(jax.jit, static_argnums=0)
    def output_and_gradients(f, x, kernel):
        y, pull = jax.vjp(f, x, kernel)
        return y, *pull(g)

    for a, b in zip(*(output_and_gradients(f, x, kernel) for f in (ours, theirs)), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


BLOCKS = [  # kernel, strides, padding, block
    ((1, 1), (2, 2), ((0, 0), (0, 0)), None),
    ((3, 3), (1, 1), ((1, 1), (1, 1)), None),
    ((3, 3), (2, 2), ((1, 1), (2, 1)), 2),
    ((3, 3), (2, 2), ((0, 0), (0, 0)), 1),
    ((5, 5), (1, 1), ((0, 0), (0, 0)), None),
    ((5, 5), (1, 1), ((-1, 2), (0, 0)), 3),
    ((2, 3), (3, 1), ((1, 1), (2, 1)), 3),
    ((2, 3), (1, 2), ((-1, 2), (0, -2)), None),
]


@pytest.mark.parametrize(("size", "strides", "pads", "block"), BLOCKS)
def test_block_convolution_and_its_gradients_equal_lax_in_float64(size, strides, pads, block):
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(normal(0, 2, 7, 8, 3)), jnp.asarray(normal(1, *size, 3, 4))
        ours = functools.partial(block_convolution, strides=strides, pads=pads, block=block)
        check_gradients(ours, lambda x, k: reference(x, k, strides, pads), x, kernel, 1e-10)


CALLS = {
    "blocks": {},
    "strides": {"window_strides": (2, 2)},
    "same": {"padding": "SAME"},
    "explicit": {"padding": ((1, 2), (0, 0))},
    "zero": {"padding": ((0, 0), (0, 0))},
    "lhs_dilation": {"lhs_dilation": (2, 2), "padding": ((0, 0), (0, 0))},
    "rhs_dilation": {"rhs_dilation": (2, 2)},
    "numbers": {"dimension_numbers": lax.conv_dimension_numbers((3, 12, 12, 4), (5, 5, 4, 6), LAYOUT)},
    "groups": {"feature_group_count": 2},
    "precision": {"precision": lax.Precision.HIGHEST},
}


@pytest.mark.parametrize(("case", "dtype"), [*((case, jnp.float64) for case in CALLS), ("blocks", jnp.float32)])
def test_conv_general_dilated_equals_lax_whatever_is_asked(case, dtype):
    options = {"window_strides": (1, 1), "padding": "VALID", "dimension_numbers": LAYOUT, **CALLS[case]}
    with jax.enable_x64(dtype == jnp.float64):
        inputs = 4 // options.get("feature_group_count", 1)
        x, kernel = jnp.asarray(normal(0, 3, 12, 12, 4), dtype), jnp.asarray(normal(1, 5, 5, inputs, 6), dtype)
        ours, theirs = (functools.partial(f, **options) for f in (conv_general_dilated, lax.conv_general_dilated))
        check_gradients(ours, theirs, x, kernel, 1e-10 if dtype == jnp.float64 else 2e-3)


@pytest.mark.parametrize(
    ("size", "strides", "pads"),
    [((3, 3), (1, 1), ((1, 1), (1, 1))), ((3, 2), (2, 1), ((1, 2), (0, -1))), ((1, 1), (2, 2), ((0, 0), (0, 0)))],
)
def test_kernel_gradient_as_products_equals_lax(size, strides, pads):
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(normal(0, 2, 7, 8, 3)), jnp.asarray(normal(1, *size, 3, 4))

        def ours(x, k):
            return product_gradient_convolution(x, k, strides, pads)

        check_gradients(ours, lambda x, k: reference(x, k, strides, pads), x, kernel, 1e-10)
        many = jax.vmap(jax.grad(lambda k: (ours(x, k) ** 2).sum()))(jnp.stack([kernel, 2 * kernel]))
        np.testing.assert_allclose(many[1], 2 * many[0], rtol=1e-10)


NARROW = [  # image, kernel, strides, padding, how many columns at once
    ((7, 8, 3), (3, 3, 3, 8), (1, 1), ((1, 1), (1, 1)), 2),
    ((7, 8, 3), (3, 3, 3, 4), (2, 1), ((0, 2), (2, 0)), 4),
    ((6, 9, 2), (2, 4, 2, 3), (1, 1), ((0, 0), (0, 0)), 2),
    ((5, 7, 2), (3, 3, 2, 3), (1, 1), ((1, 1), (1, 1)), 1),
]


@pytest.mark.parametrize(("image", "shape", "strides", "pads", "columns"), NARROW)
def test_narrow_convolution_and_its_derivatives_equal_lax_in_float64(image, shape, strides, pads, columns):
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(normal(0, 2, *image)), jnp.asarray(normal(1, *shape))
        assert columns_at_once(x, kernel, strides, pads) == columns
        ours, theirs = (lambda x, k, f=f: f(x, k, strides, pads) for f in (narrow_convolution, reference))
        check_gradients(ours, theirs, x, kernel, 1e-12)
        a, b = (jax.jvp(f, (x, kernel), (x + 1, kernel - 1))[1] for f in (ours, theirs))
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("image", "window", "pads"), [((2, 2), (3, 3), (1, 1)), ((1, 4), (3, 5), (1, 2)), ((4, 2), (5, 2), (2, 0))]
)
def test_image_product_and_its_derivatives_equal_lax_in_float64(image, window, pads):
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(normal(0, 3, *image, 2)), jnp.asarray(normal(1, *window, 2, 5))
        pads = tuple((p, p) for p in pads)
        ours, theirs = lambda x, k: image_product(x, k, pads), lambda x, k: reference(x, k, (1, 1), pads)
        check_gradients(ours, theirs, x, kernel, 1e-12)
        a, b = (jax.jvp(f, (x, kernel), (x + 1, kernel - 1))[1] for f in (ours, theirs))
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("image", "channels", "strides", "padding", "answer"),
    [
        ((2, 2), 32, (1, 1), 1, True), ((3, 3), 32, (1, 1), 1, False), ((2, 2), 15, (1, 1), 1, False),
        ((2, 2), 32, (2, 1), 1, False), ((2, 40), 32, (1, 1), 1, False),
    ],
)  # fmt: skip
def test_image_product_is_for_images_smaller_than_the_kernel(image, channels, strides, padding, answer):
    x, kernel = jnp.ones((1, *image, channels)), jnp.ones((3, 3, channels, 64))
    assert smaller_than_kernel(x, kernel, strides, ((padding, padding),) * 2) is answer
    assert not smaller_than_kernel(x, kernel, strides, ((0, 2), (2, 0)))


@pytest.mark.parametrize("channels", [4, 16])
def test_a_kernel_larger_than_the_image_gives_what_lax_gives(channels):
    x, kernel = jnp.ones((2, 4, 4, channels)), jnp.ones((5, 5, channels, 16))
    gradient = jax.grad(lambda k: conv_general_dilated(x, k, (1, 1), "VALID", dimension_numbers=LAYOUT).sum())
    np.testing.assert_array_equal(gradient(kernel), 0)


def test_conv_general_dilated_in_bfloat16_and_in_other_layouts():
    x, kernel = jnp.ones((1, 3, 9, 9)), jnp.ones((4, 3, 5, 5))
    np.testing.assert_allclose(
        conv_general_dilated(x, kernel, (1, 1), "VALID"), lax.conv_general_dilated(x, kernel, (1, 1), "VALID")
    )
    x, kernel = jnp.ones((1, 9, 9, 3), jnp.bfloat16), jnp.ones((5, 5, 3, 4), jnp.bfloat16)
    convolve = functools.partial(conv_general_dilated, x, kernel, (1, 1), "VALID", dimension_numbers=LAYOUT)
    assert convolve().dtype == jnp.bfloat16
    assert convolve(preferred_element_type=jnp.float32).dtype == jnp.float32


def test_several_kernels_at_once_and_forward_mode_equal_lax():
    x, kernels = jnp.asarray(normal(0, 2, 9, 9, 2), jnp.float32), jnp.asarray(normal(1, 3, 5, 5, 2, 4), jnp.float32)
    ours, theirs = (
        lambda x, k, f=f: f(x, k, (1, 1), "VALID", dimension_numbers=LAYOUT)
        for f in (conv_general_dilated, lax.conv_general_dilated)
    )
    for axes in ((None, 0), (0, 0)):
        xs = x if axes[0] is None else jnp.stack([x, 2 * x, -x])
        gradients = (jax.vmap(jax.grad(lambda x, k, f=f: (f(x, k) ** 2).sum(), (0, 1)), axes) for f in (ours, theirs))
        a, b = (jax.jit(g)(xs, kernels) for g in gradients)
        jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=1e-4, atol=1e-2), a, b)
    tangents = (x + 1, kernels[1])
    a, b = (jax.jvp(f, (x, kernels[0]), tangents) for f in (ours, theirs))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def test_lenet5_and_its_input_gradient_do_not_depend_on_the_convolution():
    def convolve_pool(x, kernel):
        return max_pool(reference(x, kernel, (1, 1), "VALID"))

    plain = models.lenet5(jax.random.key(0), convolve_pool=convolve_pool)
    network, x = build("lenet5"), images("lenet5")

    def gradients(forward):
        def loss(p, x):
            return (forward(p, {}, x, None, True)[0] ** 2).sum()

        return jax.jit(jax.grad(loss, (0, 1)))(network.params, x)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        gradients(network.forward),
        gradients(plain.forward),
    )


@pytest.mark.parametrize(("shape", "window"), [((2, 9, 12, 3), 2), ((2, 12, 11, 3), 3), ((2, 9, 9, 40), 2)])
def test_pooled_convolution_equals_pooling_after_convolving(shape, window):
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(normal(0, *shape)), jnp.asarray(normal(1, 5, 5, shape[3], 4))
        ours = functools.partial(convolve_max_pool, window=window)
        check_gradients(
            jax.jit(ours), lambda x, k: max_pool(reference(x, k, (1, 1), "VALID"), window), x, kernel, 1e-10
        )


def test_pooled_convolution_shares_its_gradient_among_ties():
    gradient = jax.jit(jax.grad(lambda x: convolve_max_pool(x, jnp.ones((5, 5, 2, 3))).sum()))
    np.testing.assert_allclose(gradient(jnp.zeros((1, 8, 8, 2))).sum(), (2 * 2 * 3) * (5 * 5 * 2))


def test_max_pool_equals_reduce_window_and_shares_its_gradient_among_ties():
    x = jnp.asarray(normal(0, 2, 7, 6, 3), jnp.float32)
    windows = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    np.testing.assert_array_equal(max_pool(x), windows)
    gradient = jax.grad(lambda x: max_pool(x).sum())
    assert gradient(jnp.zeros((1, 4, 4, 1))).sum() == 4
    np.testing.assert_array_equal(gradient(x)[:, 6:], 0)
    np.testing.assert_array_equal(jnp.sort(gradient(x)[:, :2, :2].reshape(2, 4, 3), 1)[:, :, 0], [[0, 0, 0, 1]] * 2)
