"""Shrunk networks give what the masked ones give: the library's own networks, exact outputs, honest counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rvsm_jax import models
from rvsm_jax.shrinking import shrink

KEY = jax.random.key(0)
NETWORKS = {
    "lenet5": (lambda: models.lenet5(KEY, image_shape=(16, 16, 1)), (16, 16, 1)),
    "lenet_300_100": (lambda: models.lenet_300_100(KEY, image_shape=(8, 8, 1)), (8, 8, 1)),
    "preact_resnet20": (lambda: models.preact_resnet(KEY, width=4), (8, 8, 3)),
    "resnet18": (lambda: models.resnet18(KEY, width=4), (8, 8, 3)),
}


def evaluation(network):
    return lambda variables, x: network.forward(variables["params"], variables["state"], x, None, False)[0]


def pruned(network, rng, share=0.5, filters=False):
    """Zeroes input channels (or filters) of every kernel; biases and statistics get any values."""

    def prune(path, leaf):
        leaf = np.array(leaf)
        if leaf.ndim < 2:
            return jnp.asarray(leaf + 0.2 * rng.normal(size=leaf.shape).astype(leaf.dtype) ** 2)
        axis = leaf.ndim - (1 if filters else 2)
        gone = rng.random(leaf.shape[axis]) < share
        if leaf.shape[axis] > 3 and not (filters and "dense2" in path) and "dense3" not in path:
            np.moveaxis(leaf, axis, 0)[gone] = 0
        return jnp.asarray(leaf)

    tree = {"params": network.params, "state": network.state}
    return jax.tree_util.tree_map_with_path(lambda path, x: prune(jax.tree_util.keystr(path), x), tree)


def assert_close(a, b, tolerance):
    np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol=0, atol=tolerance * float(jnp.abs(a).max()))


@pytest.mark.parametrize("filters", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_the_library_shrink_exactly(name, filters):
    make, shape = NETWORKS[name]
    network, rng = make(), np.random.default_rng(1)
    fn, variables = evaluation(network), pruned(network, rng, filters=filters)
    small_fn, small, report = shrink(fn, variables, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    x = jnp.asarray(rng.normal(size=(7, *shape)), jnp.float32)
    assert_close(fn(variables, x), jax.jit(small_fn)(small, x), 1e-5)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (variables, small)]
    assert tuple(report.parameters) == tuple(sizes)
    assert report.kept_whole == () and report.inlined == ()
    assert report.multiply_adds.after < report.multiply_adds.before or filters
