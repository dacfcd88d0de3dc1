"""Layers in other layouts give what the dense layer with the same zeros does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rvsm_jax import layouts

SHAPES = {"dense": (7, 6), "conv": (3, 2, 4, 6)}


def zeroed(shape, kind):
    """A kernel with single zeros, or without some inputs and outputs, or nothing but zeros."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=shape).astype(np.float32)
    if kind == "single":
        return w * (rng.random(shape) < 0.3)
    w[..., [0, 3], :], w[..., [0, 2, 5]] = 0, 0
    return w if kind == "channels" else 0 * w


def looped(x, w, strides, pads):
    """The convolution, one output at a time."""
    x = np.pad(x.astype(float), ((0, 0), *pads, (0, 0)))
    h, k = w.shape[:2]
    rows, columns = ((n - m) // s + 1 for n, m, s in zip(x.shape[1:3], (h, k), strides, strict=True))
    y = np.zeros((len(x), rows, columns, w.shape[-1]))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, i * strides[0] : i * strides[0] + h, j * strides[1] : j * strides[1] + k]
            y[:, i, j] = np.tensordot(patch, w, 3)
    return y


@pytest.mark.parametrize("kind", ["single", "channels", "nothing"])
@pytest.mark.parametrize(
    "make", [layouts.narrowed, *(lambda w, rows=rows: layouts.gathered(w, rows) for rows in (None, 1, 2, 4))]
)
def test_a_dense_layer(kind, make):
    w = zeroed(SHAPES["dense"], kind)
    x = np.random.default_rng(1).normal(size=(2, 3, 7)).astype(np.float32)
    found = jax.jit(layouts.apply)(make(jnp.asarray(w)), x)
    np.testing.assert_allclose(found, x @ w, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "make", "strides", "padding", "cached"),
    [
        ("single", lambda w: layouts.gathered(w, 4), (1, 1), "SAME", 2**24),
        ("single", lambda w: layouts.gathered(w, 1), (2, 1), "VALID", 1),
        ("channels", lambda w: layouts.gathered(w, 2), (1, 2), "SAME", 24 * 4 * 12 * 2),
        ("channels", layouts.narrowed, (2, 1), "VALID", 2**24),
        ("nothing", layouts.gathered, (1, 1), "VALID", 2**24),
    ],
)
def test_a_convolution(monkeypatch, kind, make, strides, padding, cached):
    """Whole, image by image, and a few images at once."""
    monkeypatch.setattr(layouts, "CACHED", cached)
    w = zeroed(SHAPES["conv"], kind)
    x = np.random.default_rng(1).normal(size=(6, 5, 4, 4)).astype(np.float32)
    pads = lax.padtype_to_pads(x.shape[1:3], w.shape[:2], strides, padding)
    found = jax.jit(layouts.apply, static_argnames=("strides", "padding"))(
        make(jnp.asarray(w)), x, strides=strides, padding=padding
    )
    np.testing.assert_allclose(found, looped(x, w, strides, pads), atol=1e-5)


def test_only_what_is_needed_is_stored():
    w = np.zeros((6, 8), np.float32)
    w[[0, 3], :4], w[[1, 2, 4], 5:] = 1, 2
    layer = layouts.gathered(jnp.asarray(w), rows=4)  # output 4 is zero: bands 0 to 3 and 5 to 7
    assert layer.columns[0, :2].tolist() == [0, 3] and sorted(layer.columns[1].tolist()) == [1, 2, 4]
    assert layer.values.shape == (2, 3, 4) and int((layer.values != 0).sum()) == np.count_nonzero(w)
    assert layer.outputs.tolist() == [0, 1, 2, 3, 8, 4, 5, 6]
    assert layouts.gathered(jnp.asarray(w)).values.shape == (1, 5, 7)
    assert layouts.narrowed(jnp.asarray(w)).kernel.shape == (5, 7)


def test_at_most_so_many_images_at_once():
    assert [layouts._images_at_once(12, layouts.CACHED // n) for n in (12, 11, 5, 1)] == [12, 6, 4, 1]
    assert layouts._images_at_once(7, 2 * layouts.CACHED) == 1


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"rank 2 or 4 is wanted, got one of shape \(3,\)"):
        layouts.gathered(jnp.ones(3))
    with pytest.raises(ValueError, match=r"rank 2 or 4 is wanted, got one of shape \(1, 2, 3\)"):
        layouts.narrowed(jnp.ones((1, 2, 3)))
    for rows in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"rows must be an int >= 1, or None, got {rows}"):
            layouts.gathered(jnp.ones((2, 2)), rows)
    with pytest.raises(ValueError, match=r"x must be \(..., input\) with input = 2, got shape \(4, 3\)"):
        layouts.apply(layouts.narrowed(jnp.ones((2, 2))), jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"x must be images \(B, H, W, input\) with input = 2, got shape \(5, 5, 2\)"):
        layouts.apply(layouts.gathered(jnp.ones((3, 3, 2, 4))), jnp.ones((5, 5, 2)))
