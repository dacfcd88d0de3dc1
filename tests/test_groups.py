"""Groups against their definitions: norms, exact rebuilding, brute force, and gradients at zero."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rvsm_jax

KERNEL = np.random.default_rng(0).normal(size=(3, 2, 4, 5))
GROUPS = {
    "weights": (rvsm_jax.weights, ()),
    "filters": (rvsm_jax.filters, (0, 1, 2)),
    "channels": (rvsm_jax.channels, (0, 1, 3)),
    "shapes": (rvsm_jax.shapes, (3,)),
    "layers": (rvsm_jax.layers, (0, 1, 2, 3)),
    "over": (rvsm_jax.over(0, -1), (0, 3)),
}


@pytest.mark.parametrize("name", GROUPS)
def test_magnitudes_are_norms_and_rebuilding_scales(name):
    groups, axes = GROUPS[name]
    with jax.enable_x64(True):
        m, rebuild = groups(jnp.asarray(KERNEL))
        np.testing.assert_allclose(m, np.sqrt((KERNEL**2).sum(axis=axes, keepdims=True)) if axes else abs(KERNEL))
        np.testing.assert_array_equal(rebuild(m), KERNEL)
        np.testing.assert_allclose(rebuild(m / 3), KERNEL / 3, rtol=1e-14)
        assert not np.asarray(rebuild(jnp.zeros_like(m))).any()


@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_is_kept_and_identity_is_exact(name, dtype):
    x = jnp.asarray(KERNEL).astype(dtype)
    m, rebuild = GROUPS[name][0](x)
    assert rebuild(m).dtype == x.dtype
    np.testing.assert_array_equal(rebuild(m), x)


@pytest.mark.parametrize("name", GROUPS)
def test_zero_tensor_has_zero_gradient(name):
    zero = jnp.zeros((3, 2, 4, 5))
    gradient = jax.grad(lambda x: GROUPS[name][0](x)[0].sum())(zero)
    assert not np.asarray(gradient).any()
    assert not np.asarray(GROUPS[name][0](zero)[1](jnp.zeros_like(GROUPS[name][0](zero)[0]))).any()


def test_norms_neither_underflow_nor_overflow():
    for scale in (1e-25, 1e25):
        m, rebuild = rvsm_jax.filters(jnp.full((4, 2), scale))
        np.testing.assert_allclose(m, 2 * scale, rtol=1e-6)
        np.testing.assert_allclose(rebuild(m / 2), scale / 2, rtol=1e-6)


def test_zeros_have_no_sign():
    m, rebuild = rvsm_jax.weights(jnp.array([-1.0, 1.0]))
    assert not np.signbit(rebuild(0 * m)).any()


@pytest.mark.parametrize(("penalty", "rho"), [("l0", lambda r: r > 0), ("l1", lambda r: r), ("half_norm", np.sqrt)])
def test_group_prox_minimises_over_the_whole_group(penalty, rho):
    rng = np.random.default_rng(1)
    line = np.linspace(-2.5, 2.5, 801)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    for x, t in [(rng.normal(size=2), rng.uniform(0.05, 1)) for _ in range(8)]:
        prox = rvsm_jax.proximal_operator(getattr(rvsm_jax, penalty)(), rvsm_jax.over(0), where=lambda path, leaf: True)
        with jax.enable_x64(True):
            y = np.asarray(prox({"x": jnp.asarray(x)}, t)["x"])
        objective = lambda y, x=x, t=t: ((y - x) ** 2).sum(-1) / 2 + t * rho(np.sqrt((y**2).sum(-1)))  # noqa: E731
        assert objective(y) <= objective(np.vstack([grid, [[0, 0]]])).min() + 1e-12


def test_bad_axes_are_refused():
    with pytest.raises(ValueError, match=r"one or more axes as integers, got \(\)"):
        rvsm_jax.over()
    with pytest.raises(ValueError, match=r"different axes, got \(1, 1\)"):
        rvsm_jax.over(1, 1)
    with pytest.raises(ValueError, match=r"axes \(0, 3\) want a tensor that has them, got one of shape \(2, 3\)"):
        rvsm_jax.over(0, 3)(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"as integers, got \('0',\)"):
        rvsm_jax.over("0")
    with pytest.raises(ValueError, match=r"axes \(0, -2\) name one axis twice on a tensor of shape \(2, 3\)"):
        rvsm_jax.over(0, -2)(jnp.ones((2, 3)))
    for groups in (rvsm_jax.filters, rvsm_jax.channels, rvsm_jax.shapes):
        with pytest.raises(ValueError, match=rf"{groups.__name__} .* rank 2 or more, got a tensor of shape \(4,\)"):
            groups(jnp.ones(4))
