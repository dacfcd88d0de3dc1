"""A small network on scikit-learn's digits, trained in a second: what the tests of training share."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rvsm_jax import data, train

KEY = jax.random.key(0)


def mlp(seed=0, sizes=(64, 16, 10)):
    """Weights of a small network for 8 x 8 images."""
    rng = np.random.default_rng(seed)
    layers = itertools.pairwise(sizes)
    return {
        f"layer{i}": {
            "kernel": jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32),
            "bias": jnp.zeros(shape[1]),
        }
        for i, shape in enumerate(layers)
    }


def forward(params, model_state, images, key, train):
    x = images.reshape(len(images), -1)
    for i, layer in enumerate(params.values()):
        x = (x if i == 0 else jax.nn.relu(x)) @ layer["kernel"] + layer["bias"][None]
    return x, model_state


def hard(w, step):
    """Zeroes every small weight."""
    return jax.tree.map(lambda x: jnp.where(jnp.abs(x) > 0.05, x, 0), w)


@functools.cache
def digits():
    found = data.load("digits")
    return (found.train_images, found.train_labels), (found.test_images, found.test_labels)


def fit(params=None, tx=None, **changes):
    train_set, validation = digits()
    arguments = {"epochs": 3, "batch_size": 100, "key": KEY, "progress": False, "sparse": hard} | changes
    arguments = {"forward": forward, "train": train_set, "validation": validation, "model_state": {}} | arguments
    tx = optax.sgd(0.2, momentum=0.9) if tx is None else tx
    return train.fit(params=mlp() if params is None else params, tx=tx, **arguments)


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)
