"""Factored layers against the kernels they factor."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import rvsm_jax
from rvsm_jax import factors, models

KERNELS = {
    "dense": (np.random.default_rng(0).normal(size=(6, 9)), False),
    "channels": (np.random.default_rng(1).normal(size=(3, 5, 4, 7)), False),
    "spatial": (np.random.default_rng(2).normal(size=(3, 5, 4, 7)), True),
}


@pytest.mark.parametrize("name", KERNELS)
def test_factors_give_the_kernel_back_and_are_orthogonal(name):
    kernel, spatial = KERNELS[name]
    with jax.enable_x64(True):
        x = factors.decompose(jnp.asarray(kernel), spatial=spatial)
        np.testing.assert_allclose(factors.merge(x), kernel, rtol=1e-10, atol=1e-12)
        assert factors.orthogonality(x) < 1e-24
        group = rvsm_jax.spatial_spectrum if spatial else rvsm_jax.spectrum
        np.testing.assert_allclose(x.s, group(jnp.asarray(kernel))[0], rtol=1e-12)
    single = factors.decompose(jnp.asarray(kernel).astype(jnp.bfloat16), spatial=spatial)
    assert {y.dtype.name for y in single} == {"bfloat16"}


@pytest.mark.parametrize("name", ["channels", "spatial"])
@pytest.mark.parametrize(("strides", "padding"), [((1, 1), "SAME"), ((2, 1), "VALID"), ((2, 2), "SAME")])
def test_two_thin_convolutions_are_the_one(name, strides, padding):
    kernel, spatial = KERNELS[name]
    with jax.enable_x64(True):
        images = jnp.asarray(np.random.default_rng(3).normal(size=(2, 8, 9, 4)))
        found = factors.apply(factors.decompose(jnp.asarray(kernel), spatial=spatial), images, strides=strides,
                              padding=padding)  # fmt: skip
        wanted = lax.conv_general_dilated(
            images, jnp.asarray(kernel), strides, padding, dimension_numbers=factors.DIMENSIONS
        )
        np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-11)


def test_penalties_are_their_formulas_with_finite_gradients_at_zero():
    rng = np.random.default_rng(4)
    u, s, v = rng.normal(size=(8, 3)), np.array([2.0, -0.5, 0.0]), rng.normal(size=(3, 5))
    with jax.enable_x64(True):
        x = {"a": factors.Factors(*map(jnp.asarray, (u, s, v))), "bias": jnp.ones(5)}
        wanted = (((u.T @ u - np.eye(3)) ** 2).sum() + ((v @ v.T - np.eye(3)) ** 2).sum()) / 9
        np.testing.assert_allclose(factors.orthogonality(x), wanted, rtol=1e-12)
        np.testing.assert_allclose(factors.hoyer(x), 2.5 / np.sqrt(4.25) - 1, rtol=1e-12)
        gradient = jax.grad(factors.hoyer)(x)["a"].s
        assert gradient[2] == 0 and np.isfinite(gradient).all()
        dead = {"a": x["a"]._replace(s=jnp.zeros(3))}
        assert factors.hoyer(dead) == 0 and not np.asarray(jax.grad(factors.hoyer)(dead)["a"].s).any()
    spatial = factors.decompose(jnp.asarray(KERNELS["spatial"][0], jnp.float32), spatial=True)
    scaled = spatial._replace(v=2 * spatial.v)
    np.testing.assert_allclose(factors.orthogonality(scaled), 9 / spatial.s.size, rtol=1e-4)  # r 3^2 / r^2


@pytest.mark.parametrize("energy", [0.0, 0.05, 0.3, 1.0])
def test_truncation_keeps_the_fewest_that_hold_the_energy_and_is_optimal(energy):
    kernel, _ = KERNELS["dense"]
    with jax.enable_x64(True):
        x = factors.truncate(factors.decompose(jnp.asarray(kernel)), energy)
        small = factors.compact(x)
        np.testing.assert_allclose(factors.merge(small), factors.merge(x), atol=1e-12)
        lost = ((factors.merge(x) - kernel) ** 2).sum() / (kernel**2).sum()
        s2 = np.linalg.svd(kernel, compute_uv=False) ** 2
        kept = int((x.s != 0).sum())
        assert lost <= energy + 1e-12
        assert energy == 1 or kept == 6 - (np.cumsum(s2[::-1]) <= energy * s2.sum()).sum()
        assert small.s.size == max(1, kept)


def test_a_network_trains_in_factors_and_shrinks():
    network = models.lenet_300_100(jax.random.key(0), image_shape=(6, 6, 1))
    params, forward = factors.factorize(network.params), factors.factored(network.forward)
    images, labels = jax.random.uniform(jax.random.key(1), (64, 6, 6, 1)), jnp.arange(64) % 10
    np.testing.assert_allclose(
        forward(params, {}, images, None, False)[0], network.forward(network.params, {}, images, None, False)[0],
        atol=1e-5,
    )  # fmt: skip
    method = rvsm_jax.svd_training(optax.adam(1e-2), lam=1.0, energy=0.05)

    def loss(params):
        logits = forward(params, {}, images, None, True)[0]
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params, state):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = method.tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

    state, start = method.tx.init(params), loss(params)
    for _ in range(100):
        params, state = step(params, state)
    small = factors.compact(method.sparse(params, 100))
    assert loss(params) < 0.8 * start
    assert small["dense1"]["kernel"].s.size < 0.8 * params["dense1"]["kernel"].s.size
    assert factors.orthogonality(params) < 0.1


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda: factors.decompose(jnp.ones(3)), r"kernel of rank 2 or 4 is wanted, got one of shape \(3,\)"),
        (lambda: factors.decompose(jnp.ones((3, 3)), spatial=True), r"kernel of rank 4 is wanted"),
        (lambda: factors.truncate({}, 1.5), r"energy must be in \[0, 1\], got 1.5"),
        (lambda: factors.hoyer({"a": jnp.ones(3)}), r"params hold no Factors: make them with factorize\(params\)"),
    ],
)
def test_bad_arguments_are_refused(make, shown):
    with pytest.raises(ValueError, match=shown):
        make()
