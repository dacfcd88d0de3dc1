import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rvsm_jax import data, epochs, train
from tests.digits import KEY, digits, fit, forward, mlp


def test_an_epoch_goes_once_through_the_data_in_an_order_of_its_own():
    first, again, second = (train.shuffle(KEY, e, examples=103, batch_size=10) for e in (0, 0, 1))
    assert first.shape == (10, 10) and len(np.unique(first)) == 100 and first.min() >= 0 and first.max() < 103
    np.testing.assert_array_equal(first, again)
    assert (np.asarray(first) != np.asarray(second)).any()


def test_scanned_and_dispatched_epochs_agree_and_fetch_once(monkeypatch):
    (images, labels), _ = digits()
    tx, ends, fetched = optax.sgd(0.1, momentum=0.9), [], []
    order = train.shuffle(KEY, 0, examples=len(labels), batch_size=100)
    fetch = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda x: fetched.append(None) or fetch(x))
    for scan in (False, True):
        epoch = train.make_epoch(train.make_step(forward, tx), scan=scan)
        state = train.init_state(mlp(), {}, tx, KEY)
        ends.append(epoch(*epoch(state, images, labels, order, 9)[:1], images, labels, order, 5))
    assert len(fetched) == 4
    (state, metrics), (scanned, scanned_metrics) = ends
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state.params, scanned.params)
    np.testing.assert_allclose(metrics["loss"], scanned_metrics["loss"], rtol=1e-5)
    assert metrics["loss"].shape == (5,) and int(state.step) == 14


@pytest.mark.parametrize("batch_size", [1, 7, 360, 1000])
@pytest.mark.parametrize("devices", [1, 8])
def test_evaluation_counts_every_example_once(batch_size, devices):
    _, (images, labels) = digits()
    images, labels = images[:41], labels[:41]
    mesh = train.data_mesh(jax.devices()[:devices])
    found = train.evaluate(forward, mlp(), {}, images, labels, batch_size=batch_size, mesh=mesh)
    logits = np.asarray(forward(mlp(), {}, images.astype(np.float32) / np.float32(255), KEY, False)[0], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    np.testing.assert_allclose(found["loss"], -log_p[np.arange(41), labels].mean(), rtol=1e-6)
    assert found["accuracy"] == (logits.argmax(1) == labels).mean()


def evaluate_labels(labels, images=None, **options):
    images = np.zeros((len(labels), 8, 8, 1), np.uint8) if images is None else images
    return train.evaluate(forward, mlp(), {}, images, labels, **options)


@pytest.mark.parametrize(("dtype", "devices"), [(np.int32, 1), (np.uint8, 8)])
def test_labels_out_of_range_are_named_whichever_batch_they_are_in(dtype, devices):
    mesh = train.data_mesh(jax.devices()[:devices])
    for wrong in (10, -1):
        labels = np.arange(9).astype(dtype)
        labels[7] = np.int8(wrong).astype(dtype)
        seen = r"-1\.\.8" if labels[7] < 0 else rf"0\.\.{labels[7]}"
        for batch_size in (2, 1000):
            with pytest.raises(ValueError, match=rf"labels must be in 0\.\.9, one for each logit, got {seen}"):
                evaluate_labels(labels, batch_size=batch_size, mesh=mesh)


@pytest.mark.parametrize(
    ("error", "labels", "options", "match"),
    [
        (ValueError, np.zeros(3, int), {"images": np.zeros((4, 8, 8, 1))}, r"got images \(4, .*labels \(3,\)"),
        (ValueError, np.zeros(0, int), {}, r"N >= 1, got images \(0, .*labels \(0,\)"),
        (ValueError, np.zeros((3, 10), int), {}, r"labels \[N\] are wanted.*labels \(3, 10\)"),
        (TypeError, np.zeros((3, 10), np.float32), {}, r"must be integers \[N\].*got float32 \(3, 10\)"),
        (TypeError, [0, 1], {}, "must be arrays, got list"),
        (ValueError, np.zeros(3, int), {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        (TypeError, np.zeros(3, int), {"batch_size": 16.0}, r"batch_size must be an integer, got 16\.0"),
    ],
)
def test_what_cannot_be_evaluated_is_named(error, labels, options, match):
    with pytest.raises(error, match=match):
        evaluate_labels(labels, **options)


def test_evaluation_is_traced_once():
    traces = []

    def counted(*arguments):
        traces.append(None)
        return forward(*arguments)

    images, labels = np.zeros((9, 8, 8, 1), np.uint8), np.arange(9)
    for _ in range(3):
        train.evaluate(counted, mlp(), {}, images, labels, batch_size=4)
    assert len(traces) == 1


def normalised(params, model_state, images, key, train):
    """A network with batch statistics and noise, which couple a batch."""
    x = images.reshape(len(images), -1)
    mean = x.mean(0) if train else model_state["mean"]
    x = x - mean[None] + (0.01 * jax.random.normal(key, x.shape) if train else 0)
    logits, _ = forward(params, {}, x, key, train)
    return logits, {"mean": 0.9 * model_state["mean"] + 0.1 * mean}


def test_one_device_and_eight_give_the_same_curve():
    one, eight = (
        fit(
            forward=normalised,
            model_state={"mean": jnp.zeros(64)},
            batch_size=96,
            devices=jax.devices()[:n],
            augment=functools.partial(data.crop, padding=1),
        )
        for n in (1, 8)
    )
    assert len(eight.state.params["layer0"]["kernel"].sharding.device_set) == 8
    for a, b in zip(one.history, eight.history, strict=True):
        for name in set(a) - {"seconds"}:
            np.testing.assert_allclose(a[name], b[name], rtol=2e-4, err_msg=name)
    np.testing.assert_allclose(one.model_state["mean"], eight.model_state["mean"], rtol=1e-4, atol=1e-6)
    assert one.history[-1]["train_loss"] < 0.8 * one.history[0]["train_loss"]


def test_the_batch_is_split_over_the_devices():
    mesh = train.data_mesh(jax.devices(), 16)
    (images, labels), _ = digits()
    state = train.init_state(mlp(), {}, optax.sgd(0.1), KEY)
    order = train.shuffle(KEY, 0, examples=len(labels), batch_size=16)
    arrays = epochs.replicate((state, images, labels, order), mesh)
    x, y = jax.jit(lambda s, *rest: epochs.take(mesh, s, *rest))(*arrays)
    assert x.sharding.spec == y.sharding.spec == jax.sharding.PartitionSpec("data")
    np.testing.assert_array_equal(x, images[order[0]])


def test_devices_default_to_one_on_cpu_and_must_divide_the_batch():
    assert train.data_mesh().size == 1 and train.data_mesh(jax.devices()).size == 8
    with pytest.raises(ValueError, match="multiple of the number of devices, got 100 on 8"):
        fit(devices=jax.devices())
