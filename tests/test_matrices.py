"""Blocks and spectra of kernels against NumPy, and theorems on both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rvsm_jax

KERNEL = np.random.default_rng(0).normal(size=(3, 2, 3, 10))
everything = lambda path, leaf: True  # noqa: E731


def tiles(x, rows, columns):
    """The blocks of the (output, rest) matrix, one by one."""
    matrix = x.reshape(-1, x.shape[-1]).T
    return [
        [matrix[i : i + rows, j : j + columns] for j in range(0, matrix.shape[1], columns)]
        for i in range(0, matrix.shape[0], rows)
    ]


@pytest.mark.parametrize(("by", "axis"), [("rows", 1), ("columns", 0), ("blocks", (0, 1)), ("weights", None)])
def test_blocks_are_those_of_the_matrix(by, axis):
    with jax.enable_x64(True):
        m, rebuild = rvsm_jax.blocks(4, 5, by)(jnp.asarray(KERNEL))
        np.testing.assert_allclose(rebuild(m), KERNEL, rtol=1e-14)
        kept = np.asarray(rebuild(m.at[1, 2].set(0)))
    for i, row in enumerate(tiles(KERNEL, 4, 5)):
        for j, block in enumerate(row):
            norms = np.abs(block) if axis is None else np.sqrt((block**2).sum(axis))
            found = np.asarray(m[i, j])
            np.testing.assert_allclose(found[tuple(map(slice, norms.shape))], norms, rtol=1e-13)
            np.testing.assert_allclose((found**2).sum(), (block**2).sum())  # a ragged edge is filled with zeros
            expected = np.zeros_like(block) if (i, j) == (1, 2) else block
            np.testing.assert_allclose(tiles(kept, 4, 5)[i][j], expected, rtol=1e-14)


def test_a_block_as_large_as_the_matrix_gives_filters_and_shapes():
    m, _ = rvsm_jax.blocks(99, 99, "rows")(jnp.asarray(KERNEL, jnp.float32))
    np.testing.assert_allclose(m.ravel(), rvsm_jax.filters(jnp.asarray(KERNEL, jnp.float32))[0].ravel(), rtol=1e-6)
    m, _ = rvsm_jax.blocks(99, 99, "columns")(jnp.asarray(KERNEL, jnp.float32))
    np.testing.assert_allclose(m.ravel(), rvsm_jax.shapes(jnp.asarray(KERNEL, jnp.float32))[0].ravel(), rtol=1e-6)


@pytest.mark.parametrize("groups", [rvsm_jax.spectrum, rvsm_jax.spatial_spectrum])
def test_singular_value_thresholding_meets_the_optimality_condition_of_the_nuclear_norm(groups):
    prox = rvsm_jax.proximal_operator(rvsm_jax.l1(), groups, where=everything)
    t = 3.0
    with jax.enable_x64(True):
        u = np.asarray(prox({"x": jnp.asarray(KERNEL)}, t)["x"])
    a, z = (matrix_of(groups, x) for x in (KERNEL, u))
    left, s, right = np.linalg.svd(z, full_matrices=False)
    rank = (s > 1e-10).sum()
    assert 0 < rank < len(s)
    left, right, rest = left[:, :rank], right[:rank], (a - z) / t
    np.testing.assert_allclose(left.T @ rest, right, atol=1e-10)  # a - z = t (U V + R),
    np.testing.assert_allclose(rest @ right.T, left, atol=1e-10)  # R orthogonal to U and V,
    assert np.linalg.norm(rest - left @ right, 2) <= 1 + 1e-10  # |R| <= 1


def matrix_of(groups, x):
    h, w, i, o = x.shape
    return x.reshape(-1, o) if groups is rvsm_jax.spectrum else x.transpose(0, 2, 1, 3).reshape(h * i, w * o)


def test_top_k_of_the_spectrum_is_the_nearest_matrix_of_its_rank():
    prox = rvsm_jax.proximal_operator(rvsm_jax.top_k(2), rvsm_jax.spectrum, where=everything)
    with jax.enable_x64(True):
        u = np.asarray(prox({"x": jnp.asarray(KERNEL)}, 1.0)["x"])
    s = np.linalg.svd(KERNEL.reshape(-1, 10), compute_uv=False)
    assert np.linalg.matrix_rank(u.reshape(-1, 10)) == 2
    np.testing.assert_allclose(((KERNEL - u) ** 2).sum(), (s[2:] ** 2).sum(), rtol=1e-12)  # Eckart and Young


def test_the_spectrum_s_gradient():
    nuclear = lambda x: rvsm_jax.spectrum(x)[0].sum()  # noqa: E731
    with jax.enable_x64(True):
        left, _, right = np.linalg.svd(KERNEL.reshape(-1, 10), full_matrices=False)
        np.testing.assert_allclose(jax.grad(nuclear)(jnp.asarray(KERNEL)).reshape(-1, 10), left @ right, atol=1e-12)
        np.testing.assert_allclose(jax.grad(nuclear)(jnp.eye(3)), np.eye(3), atol=1e-12)  # equal values
        half = jnp.asarray(np.diag([1.0, 0.0, 0.0]))
        np.testing.assert_allclose(jax.grad(nuclear)(half), half, atol=1e-12)
        assert not np.asarray(jax.grad(nuclear)(jnp.zeros((3, 4)))).any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dtype_is_kept_and_zero_is_exact(dtype):
    x = jnp.asarray(KERNEL).astype(dtype)
    for groups in (rvsm_jax.spectrum, rvsm_jax.blocks(4, 5, "columns")):
        m, rebuild = groups(x)
        assert m.dtype == "float32" and rebuild(m).dtype == dtype
        assert not np.asarray(rebuild(jnp.zeros_like(m)), np.float32).any()
        np.testing.assert_allclose(np.asarray(rebuild(m), np.float32), np.asarray(x, np.float32), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda: rvsm_jax.blocks(0, 4), "rows must be an int >= 1, got 0"),
        (lambda: rvsm_jax.blocks(4, 2.0), "columns must be an int >= 1, got 2.0"),
        (lambda: rvsm_jax.blocks(4, 4, "filters"), "by must be one of 'weights', 'rows', .* got 'filters'"),
        (lambda: rvsm_jax.blocks(4, 4)(jnp.ones(3)), r"rank 2 or more, got a tensor of shape \(3,\)"),
        (lambda: rvsm_jax.spectrum(jnp.ones(3)), r"rank 2 or more, got a tensor of shape \(3,\)"),
        (lambda: rvsm_jax.spatial_spectrum(jnp.ones((3, 3))), r"rank 4, got a tensor of shape \(3, 3\)"),
    ],
)
def test_bad_arguments_are_refused(make, shown):
    with pytest.raises(ValueError, match=shown):
        make()
