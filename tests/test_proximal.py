"""The operator on trees: which leaves, in which order of ranks, and what it refuses."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import rvsm_jax
from tests.problems import PENALTIES, TREES, dict_params, equinox_params


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("joint", [False, True])
def test_kernels_become_sparse_and_the_rest_is_handed_through(tree, penalty, joint):
    params = TREES[tree]()
    u = rvsm_jax.proximal_operator(PENALTIES[penalty], joint=joint)(params, 0.2)
    assert jax.tree.structure(u) == jax.tree.structure(params)
    for before, after in zip(jax.tree.leaves(params), jax.tree.leaves(u), strict=True):
        assert after.dtype == before.dtype
        if before.ndim < 2:
            assert after is before
        else:
            assert np.count_nonzero(after) < after.size
            assert (np.abs(after) <= np.abs(before) * (1 + 1e-6)).all()


@pytest.mark.parametrize("penalty", sorted(set(PENALTIES) - {"top_k"}))
def test_jointly_or_not_is_the_same_for_separable_penalties(penalty):
    one, all_ = (rvsm_jax.proximal_operator(PENALTIES[penalty], joint=j)(dict_params(), 0.1) for j in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, all_)


def test_top_k_ranks_the_whole_network_when_joint():
    params = {"a": jnp.array([[5.0, 4.0]]), "b": jnp.array([[1.0, 3.0, 2.0]])}
    operator = rvsm_jax.proximal_operator(rvsm_jax.top_k(3), joint=True)
    u = operator(params, 1.0)
    assert u["a"].tolist() == [[5, 4]] and u["b"].tolist() == [[0, 3, 0]]
    assert operator.value(u) == 0 and operator.value(params) == jnp.inf
    each = rvsm_jax.proximal_operator(rvsm_jax.top_k(1))(params, 1.0)
    assert each["a"].tolist() == [[5, 0]] and each["b"].tolist() == [[0, 3, 0]]


def test_joint_ranking_mixes_precisions():
    params = {"a": jnp.array([[5.0, 1.0]], jnp.bfloat16), "b": jnp.array([[2.0, 3.0]])}
    u = rvsm_jax.proximal_operator(rvsm_jax.top_k(2), joint=True)(params, 1.0)
    assert u["a"].dtype == jnp.bfloat16 and u["a"].tolist() == [[5, 0]] and u["b"].tolist() == [[0, 3]]


@pytest.mark.parametrize("penalty", sorted(set(PENALTIES) - {"l0", "top_k"}))
def test_gradient_is_that_of_the_value(penalty):
    operator = rvsm_jax.proximal_operator(PENALTIES[penalty], rvsm_jax.channels)
    with jax.enable_x64(True):
        w = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3))).at[1].set(0), "bias": jnp.ones(3)}
        g = operator.gradient(w)
        assert not np.asarray(g["bias"]).any() and not np.asarray(g["kernel"][1]).any()
        d = jnp.zeros((4, 3)).at[0].set(jnp.array([0.3, -0.1, 0.2]))
        h = 1e-6
        plus, minus = (operator.value(w | {"kernel": w["kernel"] + s * h * d}) for s in (1, -1))
        np.testing.assert_allclose((g["kernel"] * d).sum(), (plus - minus) / (2 * h), rtol=1e-6)


@pytest.mark.parametrize(
    ("groups", "penalty"),
    [(rvsm_jax.channels, "half_norm"), (rvsm_jax.layers, "l1")],
)
def test_weights_by_size_are_strengths_by_size(groups, penalty):
    """sum_g sqrt(n_g) rho(|w_g|): each leaf's map at the strength times the root of its groups' size."""
    plain = rvsm_jax.proximal_operator(PENALTIES[penalty], groups)
    operator = rvsm_jax.proximal_operator(PENALTIES[penalty], groups, by_size=True)
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        w = {"a": jnp.asarray(rng.normal(size=(3, 2, 4))), "b": jnp.asarray(rng.normal(size=(5, 2)))}
        together, value = operator(w, 0.2), operator.value(w)
        roots = {k: np.sqrt(x.size / groups(x)[0].size) for k, x in w.items()}
        for k, root in roots.items():
            np.testing.assert_allclose(together[k], plain({k: w[k]}, 0.2 * root)[k], rtol=1e-12)
        expected = sum(root * float(plain.value({k: w[k]})) for k, root in roots.items())
        assert float(value) == pytest.approx(expected, rel=1e-12)
        zero = {"a": jnp.zeros((2, 3)), "b": w["b"]}
        assert not np.asarray(operator.gradient(zero)["a"]).any()


def test_whole_models_go_through_with_their_functions():
    model = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    sparse = rvsm_jax.proximal_operator(rvsm_jax.l0())(model, 0.01)
    assert sparse.activation is model.activation
    assert np.isfinite(sparse(jnp.ones(4))).all()


def test_traced_once_for_all_strengths():
    traces = []

    def groups(x):
        traces.append(x.shape)
        return rvsm_jax.weights(x)

    operator = rvsm_jax.proximal_operator(rvsm_jax.l0(), groups)
    for strength in (0.1, 0.2, jnp.float32(0.3)):
        operator({"kernel": jnp.ones((2, 2))}, strength)
    assert len(traces) <= 2  # a Python number and an array are two types of argument


@pytest.mark.parametrize("penalty", PENALTIES)
def test_vmap_over_strengths_and_networks(penalty):
    operator = rvsm_jax.proximal_operator(PENALTIES[penalty])
    strengths, params = jnp.array([0.01, 0.1, 1.0]), dict_params()
    stacked = jax.vmap(operator, in_axes=(None, 0))(params, strengths)
    for i, t in enumerate(strengths):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6), stacked, operator(params, t))


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("axes", ["Auto", "Explicit"])
@pytest.mark.parametrize("penalty", [rvsm_jax.top_k(0.25), rvsm_jax.l1()])
def test_sharded_parameters(joint, axes, penalty):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(getattr(jax.sharding.AxisType, axes),))
    x = jax.random.normal(jax.random.key(0), (16, 24))
    for spec in (PartitionSpec("data"), PartitionSpec(None, "data")):
        placed = jax.device_put(x, NamedSharding(mesh, spec))
        operator = rvsm_jax.proximal_operator(penalty, joint=joint)
        u = operator({"kernel": placed}, 0.5)["kernel"]
        np.testing.assert_array_equal(u, operator({"kernel": x}, 0.5)["kernel"])
        assert axes == "Auto" or u.sharding.is_equivalent_to(placed.sharding, 2)


def test_embeddings_and_normalisation_are_not_kernels():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.words = nnx.Embed(7, 4, rngs=rngs)
            self.norm = nnx.LayerNorm(4, rngs=rngs)
            self.head = nnx.Linear(4, 2, rngs=rngs)

    params = nnx.state(Net(nnx.Rngs(0)), nnx.Param)
    assert [row.path.split("/")[0] for row in rvsm_jax.sparsity(params).rows] == ["head"]
    assert {row.path for row in rvsm_jax.sparsity(equinox_params()).rows} == {"layers/0/weight", "layers/1/weight"}


@pytest.mark.parametrize(
    ("make", "error", "shown"),
    [
        (lambda: rvsm_jax.proximal_operator("l0"), TypeError, "penalty must be a Penalty .* got 'l0'"),
        (lambda: rvsm_jax.proximal_operator(rvsm_jax.l0), TypeError, "penalty must be a Penalty"),
        (lambda: rvsm_jax.proximal_operator(rvsm_jax.l0(), "filters"), TypeError, "groups must be a function"),
        (lambda: rvsm_jax.proximal_operator(rvsm_jax.l0(), where="conv"), TypeError, "where must be a function"),
        (
            lambda: rvsm_jax.proximal_operator(rvsm_jax.l0(), joint=True, by_size=True),
            ValueError,
            "want by_size .* or joint .*, got both",
        ),
        (
            lambda: rvsm_jax.proximal_operator(rvsm_jax.l0())(dict_params(), -0.5),
            ValueError,
            "strength must be non-negative, got -0.5",
        ),
        (
            lambda: rvsm_jax.proximal_operator(rvsm_jax.l0())(dict_params(), jnp.float32("nan")),
            ValueError,
            "strength must be non-negative, got nan",
        ),
        (
            lambda: rvsm_jax.proximal_operator(rvsm_jax.l0())(dict_params(), jnp.ones(2)),
            TypeError,
            "strength must be a real number, got Array",
        ),
        (
            lambda: rvsm_jax.proximal_operator(rvsm_jax.l0(), where=lambda p, x: "attention" in p)(dict_params(), 0.5),
            ValueError,
            "selects none of .*conv/bias.*dense/kernel",
        ),
        (
            lambda: rvsm_jax.proximal_operator(rvsm_jax.l0())({"kernel": jnp.ones((2, 2), int)}, 0.5),
            TypeError,
            "arrays of floats, it selects 'kernel' of dtype int32",
        ),
        (
            lambda: rvsm_jax.proximal_operator(rvsm_jax.l0(), rvsm_jax.over(3))(dict_params(), 0.5),
            ValueError,
            r"axes \(3,\) want a tensor that has them, got one of shape \(4, 4\)",
        ),
        (lambda: rvsm_jax.proximal_operator(rvsm_jax.l0(), rvsm_jax.over), TypeError, r"over\(-1\), got over without"),
    ],
)
def test_bad_arguments_are_named(make, error, shown):
    with pytest.raises(error, match=shown):
        make()
