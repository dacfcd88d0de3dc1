"""The networks: sizes, shapes, dtypes, statistics, and that they learn."""

import jax
import jax.numpy as jnp
import pytest

from rvsm_jax import models


def weights(params) -> int:
    return sum(x.size for path, x in jax.tree.leaves_with_path(params) if path[-1].key == "kernel")


@pytest.mark.parametrize(("make", "count"), [(models.lenet_300_100, 266_200), (models.lenet5, 430_500)])
def test_lenet_has_the_published_number_of_weights(make, count):
    network = make(jax.random.key(0))
    assert weights(network.params) == count
    logits, state = network.forward(network.params, network.state, jnp.zeros((3, 28, 28, 1)), None, True)
    assert logits.shape == (3, 10)
    assert state == network.state == {}
