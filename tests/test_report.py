"""Counts of zeros, groups and bytes, checked by hand and against SciPy's own sparse matrices."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import rvsm_jax
from tests.problems import TREES


def pruned():
    x = np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype(np.float32)
    x[:, :, 1], x[..., 2], x[0, 0, 0, 0] = 0, 0, 1e-9
    return {"conv": {"kernel": jnp.asarray(x), "bias": jnp.ones(6)}, "dense": {"kernel": jnp.zeros((6, 2))}}, x


def test_counts_by_leaf_and_group():
    params, _ = pruned()
    report = rvsm_jax.sparsity(params)
    conv, dense = report.rows
    assert (conv.path, conv.shape, conv.size, conv.nonzeros) == ("conv/kernel", (3, 3, 4, 6), 216, 9 * 3 * 5)
    assert conv.groups == {"filters": (1, 6), "channels": (1, 4)} and dense.groups == {
        "filters": (2, 2),
        "channels": (6, 6),
    }
    assert (report.weights, report.nonzeros, report.parameters) == (228, 135, 234)
    assert report.fraction == 1 - 135 / 228 and report.compression == 228 / 135
    assert rvsm_jax.sparsity(params, tolerance=1e-6).nonzeros == 134


def test_bytes_are_those_of_a_real_csr_matrix():
    params, x = pruned()
    matrix = scipy.sparse.csr_matrix(x.reshape(-1, 6).T)
    csr = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    row = rvsm_jax.sparsity(params).rows[0]
    assert row.csr_bytes == csr
    assert row.bitmask_bytes == np.packbits(x != 0).nbytes + x[x != 0].nbytes
    assert row.dense_bytes == x.nbytes
    half = rvsm_jax.sparsity({"kernel": jnp.asarray(x, jnp.bfloat16)})
    assert half.bytes() == 2 * x.size


def test_nan_is_not_a_zero():
    assert rvsm_jax.sparsity({"kernel": jnp.array([[jnp.nan, 0.0]])}).nonzeros == 1


def test_all_zero_network_and_table_and_json():
    params, _ = pruned()
    empty = rvsm_jax.sparsity({"kernel": jnp.zeros((2, 2))})
    assert empty.compression == float("inf") and empty.fraction == 1.0
    report = rvsm_jax.sparsity(params, groups={"shapes": rvsm_jax.shapes})
    table = str(report).splitlines()
    assert len(table) == 4 and "zero shapes" in table[0] and "40.79" in table[-1]
    assert json.loads(json.dumps(report.as_dict()))["nonzeros"] == 135


@pytest.mark.parametrize("tree", TREES)
def test_any_kind_of_tree(tree):
    params = TREES[tree]()
    report = rvsm_jax.sparsity(params)
    assert 0 < report.weights < report.parameters
    assert rvsm_jax.sparsity(rvsm_jax.proximal_operator(rvsm_jax.l0())(params, 1e9)).fraction == 1.0


def test_what_is_no_array_and_what_is_empty_count_nothing():
    report = rvsm_jax.sparsity({"kernel": jnp.ones((0, 3)), "activation": jnp.tanh, "bias": jnp.ones(3)})
    assert (report.parameters, report.weights, report.rows[0].groups) == (3, 0, {})


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"tolerance must be >= 0, got -1"):
        rvsm_jax.sparsity({"kernel": jnp.ones((2, 2))}, tolerance=-1)
    with pytest.raises(ValueError, match="layout must be 'dense', 'csr' or 'bitmask', got 'coo'"):
        rvsm_jax.sparsity({"kernel": jnp.ones((2, 2))}).bytes("coo")
    with pytest.raises(TypeError, match="where must be a function, got 'kernel'"):
        rvsm_jax.sparsity({"kernel": jnp.ones((2, 2))}, where="kernel")
    assert rvsm_jax.sparsity({"kernel": jnp.ones((2, 2))}, groups={}).rows[0].groups == {}
    with pytest.raises(TypeError, match=r"groups must be a mapping of names to groups .*, got <function"):
        rvsm_jax.sparsity({"kernel": jnp.ones((2, 2))}, groups=rvsm_jax.filters)
    with pytest.raises(ValueError, match="selects none of"):
        rvsm_jax.sparsity({"bias": jnp.ones(2)})
