"""Shrunk networks give what the masked ones give, in every library, and are exactly as small as they should be."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rvsm_jax import models
from rvsm_jax.models.convolution import conv_general_dilated
from rvsm_jax.shrinking import Folded, shrink
from rvsm_jax.shrinking.check import evaluate
from tests.networks import KEY, NETWORKS, of_library, pruned

LARGE = dict.fromkeys(("lenet5", "preact_resnet", "resnet18", "ensemble"), 4)
MODES = {"preact_resnet": ["keep"], "resnet18": ["fold"], "lenet5": ["fold"]}  # one to compile for the large ones
CASES = LARGE | {"mlp": 80, "linen_groupnorm": 10, "linen_attention": 10}


@functools.cache
def built(name):
    make, shape = NETWORKS[name]
    return *make(), shape


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def assert_close(a, b, tolerance):
    scale = float(jnp.abs(a).max())
    np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol=0, atol=tolerance * scale)


def assert_same_outputs(name, seed, dtype, tolerance, **options):
    fn, variables, shape = built(name)
    rng = np.random.default_rng(seed)
    variables = pruned(variables, rng, dtype=dtype)
    small_fn, small, report = shrink(fn, variables, jax.ShapeDtypeStruct((1, *shape), dtype), **options)
    x = jnp.asarray(rng.normal(size=(4, *shape)), dtype)
    with jax.default_matmul_precision("highest"):  # as compiled for the check
        assert_close(evaluate(fn, variables, x), evaluate(small_fn, small, x), tolerance)
    assert report.kept_whole == () and report.inlined == ()
    assert report.parameters == (count(variables), count(small))
    if not isinstance(small, Folded):
        jax.tree.map(np.testing.assert_array_equal, report.take(variables), small)
    return report


@pytest.mark.parametrize("name", NETWORKS)
def test_random_masks_change_nothing_in_float64(name):
    cases, shrunk = CASES.get(name, 14), []

    @settings(max_examples=cases, deadline=None, database=None, derandomize=True)
    @given(
        seed=st.integers(0, 10**6),
        constants=st.sampled_from(MODES.get(name, ["keep", "fold"])),
        gathers=st.sampled_from(["paying", "always"]),
        round_to=st.sampled_from([1, 1, 2, 3]),
    )
    def check(seed, **options):
        report = assert_same_outputs(name, seed, np.float64, 1e-12, **options)
        shrunk.append(report.parameters.share < 1 and report.multiply_adds.share < 1)

    with jax.enable_x64(True):
        check()
    assert sum(shrunk) > len(shrunk) / 3


@pytest.mark.parametrize("name", ["linen_vgg", "nnx_separable", "equinox", "mlp"])
def test_outputs_agree_in_float32(name):
    assert_same_outputs(name, 5, np.float32, 1e-5)


@functools.cache
def traced_once():
    return of_library(models.preact_resnet(KEY, width=8))


def resnet20():
    """The same function each time, and variables of one's own."""
    fn, variables = traced_once()
    return fn, jax.tree.map(lambda leaf: leaf, variables)


def test_inner_channels_of_a_resnet_go_and_leave_what_arithmetic_says():
    """Half of conv2's inputs: conv1's filters, bn2's vectors and conv2's slices go, each by half; no more, no less."""
    fn, variables = resnet20()
    expected = count(variables)
    for block, layers in variables["params"].items():
        if "block" not in block:
            continue
        kernel = layers["conv2"]["kernel"]
        layers["conv2"]["kernel"] = kernel.at[:, :, ::2].set(0)
        half = kernel.shape[2] // 2
        expected -= half * (layers["conv1"]["kernel"].size // kernel.shape[2] + 9 * kernel.shape[3] + 4)
    _, small, report = shrink(fn, variables, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32))
    assert count(small) == expected == report.parameters.after
    assert small["params"]["stage2_block1"]["conv1"]["kernel"].shape == (3, 3, 8, 8)
    np.testing.assert_array_equal(
        small["params"]["stage2_block1"]["conv1"]["kernel"],
        variables["params"]["stage2_block1"]["conv1"]["kernel"][..., 1::2],
    )
    inner = next(x for x in report.layers if x.name == "params/stage1_block2/conv2/kernel")
    assert inner.inputs == (8, 4) and inner.outputs == (8, 8) and inner.multiply_adds == (64 * 9 * 64, 64 * 9 * 32)


def test_a_network_with_nothing_to_remove_comes_back_unchanged():
    fn, variables = resnet20()
    for constants in ("keep", "fold"):
        same_fn, same, report = shrink(fn, variables, jnp.ones((1, 8, 8, 3)), constants=constants)
        assert same_fn is fn
        assert all(a is b for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(variables), strict=True))
        assert report.parameters.share == report.multiply_adds.share == 1.0


def test_shrinking_twice_is_shrinking_once():
    fn, variables, shape = built("mlp")
    variables = pruned(variables, np.random.default_rng(0), dtype=np.float32)
    small_fn, small, report = shrink(fn, variables, jnp.ones((1, *shape)))
    assert report.parameters.share < 1
    assert shrink(small_fn, small, jnp.ones((1, *shape)))[:2] == (small_fn, small)


@pytest.mark.parametrize("constants", ["keep", "fold"])
def test_a_network_with_everything_removed_gives_its_constant(constants):
    fn, variables = resnet20()
    variables["params"] = jax.tree.map(lambda w: w * 0 if w.ndim > 1 else w, variables["params"])
    variables["params"]["dense"]["bias"] = jnp.arange(10.0)
    small_fn, small, report = shrink(fn, variables, jnp.ones((1, 8, 8, 3)), constants=constants)
    np.testing.assert_array_equal(small_fn(small, jnp.ones((3, 8, 8, 3))), jnp.tile(jnp.arange(10.0), (3, 1)))
    assert report.parameters.after == 10 and report.multiply_adds.after == 0


def shifted():
    """A convolution with a zero filter, a shift behind it, and a padded convolution that reads the constant."""
    rng = np.random.default_rng(0)
    variables = {
        "a": jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32).at[..., 1].set(0),
        "shift": jnp.array([0.1, 0.7, -0.2, 0.3]),
        "b": jnp.asarray(rng.normal(size=(3, 3, 4, 5)), jnp.float32),
    }

    def fn(v, x):
        y = jax.lax.conv_general_dilated(x, v["a"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        y = jax.nn.relu(y + v["shift"].reshape(1, 1, 1, -1))
        return jax.lax.conv_general_dilated(y, v["b"], (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    return fn, variables


def test_a_constant_channel_is_kept_or_folded_but_never_dropped():
    fn, variables = shifted()
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5, 6, 2)), jnp.float32)
    kept_fn, kept, _ = shrink(fn, variables, x)
    assert kept_fn is fn and kept["a"].shape == (3, 3, 2, 4)
    small_fn, small, report = shrink(fn, variables, x, constants="fold")
    assert isinstance(small, Folded) and small.variables["a"].shape == (3, 3, 2, 3)
    (folded,) = small.constants.values()
    np.testing.assert_allclose(folded, 0.7 * variables["b"][:, :, 1:2], rtol=1e-6)
    assert_close(fn(variables, x), small_fn(small, x), 1e-5)
    negative = variables | {"shift": variables["shift"].at[1].set(-0.7)}  # relu makes it zero: it may go for good
    _, small, report = shrink(fn, negative, x)
    assert small["a"].shape[3] == small["b"].shape[2] == 3 and report.leaves[2].after == (3,)


def test_widths_are_rounded_up_as_far_as_there_are_channels():
    fn, variables = resnet20()
    for block, layers in variables["params"].items():
        if "block" in block:
            layers["conv2"]["kernel"] = layers["conv2"]["kernel"].at[:, :, 3:].set(0)
    for multiple, widths in ((1, [3, 3, 3]), (4, [4, 4, 4]), (5, [5, 5, 5]), (12, [8, 12, 12])):
        _, small, _ = shrink(fn, variables, jnp.ones((1, 8, 8, 3)), round_to=multiple)
        assert [small["params"][f"stage{i}_block2"]["conv2"]["kernel"].shape[2] for i in (1, 2, 3)] == widths


def test_rounding_passes_a_flattened_image_by_channels():
    fn, variables, shape = built("lenet5")
    variables = jax.tree.map(lambda w: w, variables)
    kernel = variables["params"]["dense1"]["kernel"]
    variables["params"]["dense1"]["kernel"] = kernel.reshape(-1, 50, 500).at[:, 3:].set(0).reshape(kernel.shape)
    _, small, _ = shrink(fn, variables, jnp.ones((1, *shape)), round_to=8)
    assert small["params"]["conv2"]["kernel"].shape == (5, 5, 20, 8)
    assert small["params"]["dense1"]["kernel"].shape == (8, 500)


def test_members_of_a_stacked_ensemble_shrink_where_all_agree():
    rng = np.random.default_rng(3)
    w1, w2 = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 5, 6), (3, 6, 2)))
    w2 = w2.at[:, 4].set(0).at[1, 2].set(0)
    fn = jax.vmap(lambda v, x: jax.nn.relu(x @ v[0]) @ v[1], in_axes=(0, None))
    _, small, _ = shrink(lambda v, x: fn(v, x).mean(0), (w1, w2), jnp.ones((1, 5)))
    assert [w.shape for w in small] == [(3, 5, 5), (3, 5, 2)]


def test_selecting_channels_of_a_stream_only_where_it_pays():
    """A product with one output cannot pay for a selection, nor can an odd width; a wide product can."""
    rng = np.random.default_rng(0)

    def fn(v, x):
        y = x @ v["in"]
        return jnp.tanh(y) @ v["out"], y.sum(1)

    def read(outputs, count, gathers):
        chosen = jnp.asarray(rng.permutation(32)[:count])
        out = jnp.zeros((32, outputs)).at[chosen].set(1)
        variables = {"in": jnp.asarray(rng.normal(size=(4, 32)), jnp.float32), "out": out}
        _, small, _ = shrink(fn, variables, jnp.ones((1, 4)), gathers=gathers)
        assert small["in"].shape == (4, 32)  # the sum reads all
        return small["out"].shape[0]

    assert [read(outputs, 16, "paying") for outputs in (1, 99)] == [32, 16]
    assert [read(99, count, "paying") for count in (24, 25)] == [24, 32]
    assert [read(1, count, "always") for count in (16, 25)] == [16, 25]


@pytest.mark.parametrize(("size", "call"), [(2, "image_product"), (8, "narrow_convolution")])
@pytest.mark.parametrize("constants", ["keep", "fold"])
def test_the_library_s_own_convolutions_shrink(size, call, constants):
    """Channels of each go, and with them, folded, a constant one that reaches less far at the border."""
    width = 32 if size == 2 else 8
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        w = {k: jnp.asarray(rng.normal(size=(3, 3, c, width)) / 9) for k, c in (("a", 32), ("b", width))}
        w = {"a": w["a"].at[..., :5].set(0), "b": w["b"].at[:, :, 3:7].set(0).at[..., 1].set(0), "shift": jnp.ones(1)}

        def fn(v, x):
            pads = dict(padding=((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))
            y = jnp.tanh(conv_general_dilated(x, v["a"], (1, 1), **pads) + v["shift"].reshape(1, 1, 1, 1))
            return conv_general_dilated(y, v["b"], (1, 1), **pads)

        x = jnp.asarray(rng.normal(size=(3, size, size, 32)))
        small_fn, small, report = shrink(fn, w, x[:1], constants=constants)
        assert_close(fn(w, x), small_fn(small, x), 1e-12)
        assert report.inlined == report.kept_whole == ()
        assert {layer.operation for layer in report.layers} == {call}
        inner = report.layers[1]
        assert inner.inputs == (width, width - (7 if constants == "fold" else 4))
        assert inner.multiply_adds.share == inner.inputs.share
        a, b = (jax.jvp(f, (v, x), (v, x))[1] for f, v in ((fn, w), (small_fn, small)))
        assert constants == "fold" or assert_close(a, b, 1e-12) is None
