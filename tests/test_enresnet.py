"""The ensemble against its members one by one, its noise against NumPy and the normal law, shrinking with noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import Mesh

import rvsm_jax
from rvsm_jax import models
from rvsm_jax.models.noise import Noise, standard_normal
from rvsm_jax.shrinking.analysis import quick_compilation

KEYS = jax.random.split(jax.random.key(0), 4)
IMAGES = jax.random.uniform(jax.random.key(1), (8, 8, 8, 2))
LABELS = jnp.arange(8) % 3


@functools.cache
def build(**options):
    return models.enresnet(KEYS[0], **{"members": 2, "depth": 8, "width": 2, "channels": 2, "num_classes": 3} | options)


quick_jit = functools.partial(jax.jit, compiler_options=quick_compilation())


@functools.cache
def jitted(train, **options):
    return quick_jit(lambda p, s, x, k: build(**options).forward(p, s, x, k, train))


def call(x=IMAGES, key=KEYS[1], train=False, **options):
    network = build(**options)
    return jitted(train, **options)(network.params, network.state, x, key)


def close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=1e-4), a, b)


@pytest.mark.parametrize("train", [False, True])
def test_without_noise_logits_are_the_mean_of_plain_networks(train):
    network = build(noise=0.0)
    single = models.preact_resnet(KEYS[0], depth=8, width=2, channels=2, num_classes=3)
    forward = quick_jit(lambda p, s: single.forward(p, s, IMAGES, None, train))
    alone = [forward(network.params[m], network.state[m]) for m in ("member0", "member1")]
    logits, state = call(key=None, train=train, noise=0.0)
    close(logits, np.mean([z for z, _ in alone], 0))
    close(state, {"member0": alone[0][1], "member1": alone[1][1]})
    assert jax.tree.structure(network.params["member0"]) == jax.tree.structure(single.params)
    assert not np.allclose(alone[0][0], alone[1][0], atol=1e-3)  # they start apart


def trained(network):
    """Loss, statistics and gradients in training mode, and the work of one device."""

    def loss(params, x):
        logits, state = network.forward(params, network.state, x, KEYS[1], True)
        return (jax.nn.log_softmax(logits)[jnp.arange(8), LABELS]).mean(), state

    step = quick_jit(jax.value_and_grad(loss, (0, 1), has_aux=True)).lower(network.params, IMAGES).compile()
    return step(network.params, IMAGES), step.cost_analysis()["flops"]


def test_members_over_devices_are_those_one_by_one():
    """On a mesh of 4 x 2 devices each does about an eighth of the work."""
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "members"))
    (wanted, whole), (found, part) = trained(build()), trained(build(mesh=mesh))
    close(found, wanted, 1e-4)
    assert all(np.abs(leaf).max() > 0 for m in wanted[1][0].values() for leaf in jax.tree.leaves(m["dense"]))
    assert part < 0.2 * whole


def test_stacked_members_are_those_one_by_one():
    close(call(vmapped=True), call())


def test_noise_is_the_deviation_of_each_image_or_of_the_batch_times_a_normal():
    x, words = jax.random.normal(KEYS[2], (4, 5, 6, 3)) * jnp.arange(4.0).reshape(4, 1, 1, 1), jnp.uint32([7, 9])
    z, a = np.asarray(standard_normal(words, x.shape)), np.asarray(x, np.float64)
    y = Noise(0.1, "image")(x, words)
    np.testing.assert_allclose(y, a + 0.1 * a.std((1, 2, 3), keepdims=True) * z, atol=1e-5)
    np.testing.assert_allclose(Noise(0.1, "batch")(x, words), a + 0.1 * a.std() * z, atol=1e-5)
    gradient = jax.grad(lambda x: Noise(0.1, "image")(x, words).sum())(x)
    normalised = (a - a.mean((1, 2, 3), keepdims=True)) / np.maximum(a.std((1, 2, 3), keepdims=True), 1e-9) / a[0].size
    np.testing.assert_allclose(gradient, 1 + 0.1 * normalised * z.sum((1, 2, 3), keepdims=True), atol=1e-4)


def test_noise_is_drawn_anew_with_every_key_at_test_time_too():
    first, again, second = (call(key=k)[0] for k in (KEYS[1], KEYS[1], KEYS[2]))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 1e-4
    close(first, call(key=models.draw_noise(KEYS[1], (2, 3, 2)))[0])


def test_normal_numbers_are_normal_and_independent():
    n, words = 200_000, [jax.random.bits(k, (2,)) for k in KEYS] + [jnp.uint32([0, 0]), jnp.uint32([0, 1])]
    z = np.stack([standard_normal(w, (n,)) for w in words]).astype(np.float64)
    assert np.abs(z).max() < 5.42
    for row in z:
        assert scipy.stats.kstest(row, "norm").pvalue > 1e-4
        for lag in (1, 2, 16, 64, 4096):
            for f in (np.abs, np.asarray):
                assert abs(np.corrcoef(f(row[lag:]), f(row[:-lag]))[0, 1]) < 5 / np.sqrt(n)
    assert np.abs(np.corrcoef(z) - np.eye(len(z))).max() < 5 / np.sqrt(n)


def test_noise_is_shrunk_around_and_can_be_drawn_anew():
    """Units of a residual branch that nobody reads go; those of a stream stay, since the deviation reads them all."""
    rng = np.random.default_rng(0)
    v = {name: jnp.float32(rng.normal(size=shape)) for name, shape in {"a": (6, 5), "b": (5, 6), "c": (6, 3)}.items()}
    v = v | {"b": v["b"].at[:3].set(0), "c": v["c"].at[:4].set(0), "noise": jnp.uint32([1, 2])}

    def fn(v, x):
        return Noise(0.1, "image")(x + jax.nn.relu(x @ v["a"]) @ v["b"], v["noise"]) @ v["c"]

    x = jnp.float32(rng.normal(size=(4, 6)))
    small_fn, small, report = rvsm_jax.shrink(fn, v, x)
    assert [small[name].shape for name in "abc"] == [(6, 2), (2, 6), (2, 3)] and not report.kept_whole
    fresh = {"noise": jnp.uint32([8, 9])}
    close(small_fn(small | fresh, x), fn(v | fresh, x))
    assert np.abs(fn(v | fresh, x) - fn(v, x)).max() > 0.01


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"members": 0}, "members must be a positive number of networks, got 0"),
        ({"noise": -0.1}, r"noise must be >= 0, got -0\.1"),
        ({"noise_over": "pixel"}, "noise_over must be 'image' or 'batch', got 'pixel'"),
        ({"depth": 21}, "depth must be one of 8, 20"),
        ({"width": 0}, "width must be a positive"),
        ({"members": 3, "mesh": Mesh(np.array(jax.devices()[:2]), ("members",))}, "divides 3, got {'members': 2}"),
        ({"mesh": Mesh(np.array(jax.devices()[:2]), ("data",))}, "axis 'members'.* got {'data': 2}"),
    ],
)
def test_bad_arguments_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        models.enresnet(KEYS[0], **options)


@pytest.mark.parametrize("train", [False, True])
def test_a_noisy_network_wants_a_key(train):
    with pytest.raises(ValueError, match="key is None, but this network is noisy"):
        build().forward(build().params, build().state, IMAGES, None, train)
