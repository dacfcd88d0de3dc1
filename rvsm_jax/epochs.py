"""Many steps in one call, and exact evaluation, over a mesh with one axis, "data".

The data set lives on every device as uint8 and a minibatch is a row of indices, split over the devices; the weights are
on each of them. Shapes: N images ``[N, H, W, C]``, labels int32 ``[N]``, B of them a batch, S steps an epoch.
"""

import functools
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rvsm_jax.step import Forward, Perturb, PyTree, TrainState, cast, cross_entropy, matrices, norm, to_unit

Sparse = Callable[[PyTree, jax.Array], PyTree]  # (w, number of steps made) -> u
Step = Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, dict[str, jax.Array]]]


def data_mesh(devices: Sequence[jax.Device] | None = None, batch_size: int | None = None) -> Mesh:
    """A mesh with the one axis "data".

    Args:
      devices: those to use; default: one on the CPU backend, elsewhere as many as divide the batch.
      batch_size: must be a multiple of the number of devices.

    Returns:
      The mesh.

    Raises:
      ValueError: if there are no devices, or they do not divide the batch.

    >>> data_mesh().axis_names
    ('data',)
    """
    if devices is None:
        every = jax.devices()
        most = 1 if jax.default_backend() == "cpu" else len(every)
        devices = every[: next(n for n in range(most, 0, -1) if (batch_size or most) % n == 0)]
    if not len(devices):
        raise ValueError("devices must not be empty")
    if batch_size is not None and batch_size % len(devices):
        raise ValueError(f"batch_size must be a multiple of the number of devices, got {batch_size} on {len(devices)}")
    return Mesh(np.array(devices), ("data",))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts a whole copy of every array on every device of the mesh.

    Args:
      tree: tree of arrays of any shape.
      mesh: as of `data_mesh`.

    Returns:
      The tree, its arrays on the devices.

    >>> replicate(jnp.ones(3), data_mesh()).sharding.is_fully_replicated
    True
    """
    return jax.device_put(tree, NamedSharding(mesh, P()))


@functools.partial(jax.jit, static_argnames=("examples", "batch_size"))
def shuffle(key: jax.Array, epoch: int, *, examples: int, batch_size: int) -> jax.Array:
    """The minibatches of an epoch, a function of the key and the epoch's number alone.

    Args:
      key: random key of the run's order.
      epoch: 0, 1, ...
      examples: N.
      batch_size: B; the ``N % B`` examples left over sit this epoch out, others each time.

    Returns:
      Indices int32 ``[S, B]``, S = N // B, no two the same.

    >>> shuffle(jax.random.key(0), 0, examples=10, batch_size=4).shape
    (2, 4)
    """
    order = jax.random.permutation(jax.random.fold_in(key, epoch), examples)
    return order[: examples // batch_size * batch_size].reshape(-1, batch_size)


def take(mesh: Mesh, state: TrainState, images: jax.Array, labels: jax.Array, order: jax.Array) -> list[jax.Array]:
    """Images and labels of the minibatch ``order[state.step % S]``, split over the devices."""
    at = jax.lax.dynamic_index_in_dim(order, state.step % len(order), keepdims=False)
    at = jax.lax.with_sharding_constraint(at, NamedSharding(mesh, P("data")))
    return [jnp.take(array, at, axis=0, mode="clip") for array in (images, labels)]


def make_epoch(
    step: Step, mesh: Mesh | None = None, scan: bool | None = None
) -> Callable[..., tuple[TrainState, dict[str, np.ndarray]]]:
    """Builds ``epoch(state, images, labels, order, count) -> (state, metrics)``, which makes ``count`` steps.

    Step t is ``state, metrics[t] = step(state, images[order[t % S]], labels[order[t % S]])``. On an accelerator they
    are one ``lax.scan``. On the CPU backend, where a convolution inside a scan is several times slower, each is a call
    of its own, dispatched without waiting for the last. This is the one place that decides.

    Args:
      step: from `make_step`, or any function like it.
      mesh: where the arrays live; default: `data_mesh`.
      scan: whether to scan; default: as the backend has it.

    Returns:
      The function. ``state`` is donated: use the one returned. ``order`` ``[S, B]`` is from `shuffle`; ``count`` is at
      least 1. The metrics are on the host, ``[count]`` each, fetched once.

    >>> step = lambda state, images, labels: (state._replace(step=state.step + 1), {"loss": images.sum()})
    >>> state = TrainState(jnp.int32(0), {}, {}, {}, jax.random.key(0))
    >>> order = shuffle(jax.random.key(0), 0, examples=6, batch_size=2)
    >>> state, metrics = make_epoch(step)(state, jnp.ones((6, 1)), jnp.zeros(6, jnp.int32), order, 3)
    >>> int(state.step), metrics["loss"]
    (3, array([2., 2., 2.], dtype=float32))
    """
    mesh = data_mesh() if mesh is None else mesh

    def advance(state, images, labels, order):
        made = step(state, *take(mesh, state, images, labels, order))
        return jax.lax.with_sharding_constraint(made, NamedSharding(mesh, P()))

    scan = mesh.devices.flat[0].platform != "cpu" if scan is None else scan
    if not scan:
        single = jax.jit(advance, donate_argnums=0)

        def many(state, images, labels, order, count):
            found = []
            for _ in range(count):
                state, metrics = single(state, images, labels, order)
                found.append(metrics)
            return state, jax.tree.map(lambda *values: np.stack(values), *jax.device_get(found))

        return many

    @functools.partial(jax.jit, donate_argnums=0, static_argnums=4)
    def scanned(state, images, labels, order, count):
        return jax.lax.scan(lambda s, _: advance(s, images, labels, order), state, length=count)

    def epoch(state, images, labels, order, count):
        state, metrics = scanned(state, images, labels, order, count)
        return state, jax.device_get(metrics)

    return epoch


def check_count(name: str, value: Any) -> None:
    """Raises unless ``value`` is an integer, at least 1: TypeError if it is none, ValueError if it is less."""
    if not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def check_examples(name: str, images: Any, labels: Any) -> None:
    """Raises unless there are N >= 1 images ``[N, ...]`` and as many integer labels ``[N]``; looks at no entry."""
    for array in (images, labels):
        if not hasattr(array, "dtype"):
            raise TypeError(f"{name}: images and labels must be arrays, got {type(array).__name__}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{name}: labels must be integers [N], one an image, got {labels.dtype} {labels.shape}")
    if labels.ndim != 1 or images.shape[:1] != labels.shape or not labels.size:
        seen = f"images {images.shape} and labels {labels.shape}"
        raise ValueError(f"{name}: as many images [N, ...] as labels [N] are wanted, N >= 1, got {seen}")


def check_labels(name: str, low: int, high: int, classes: int) -> None:
    """Raises unless all labels, low..high, are among the K = ``classes`` that there are logits for."""
    if low < 0 or high >= classes:
        raise ValueError(f"{name}: labels must be in 0..{classes - 1}, one for each logit, got {low}..{high}")


def evaluate(
    forward: Forward,
    params: PyTree,
    model_state: PyTree,
    images: Any,
    labels: Any,
    *,
    preprocess: Callable[[jax.Array], jax.Array] = to_unit,
    compute_dtype: jax.typing.DTypeLike | None = None,
    perturb: Perturb | None = None,
    batch_size: int = 1000,
    key: jax.Array | None = None,
    mesh: Mesh | None = None,
) -> dict[str, float]:
    """Mean cross-entropy and accuracy over all N examples, whatever N and the batch size are.

    Args:
      forward: as in `make_step`; called with ``train=False``. It is compiled once for each such function.
      params: the weights.
      model_state: the model's state; left as it is.
      images: ``[N, H, W, C]``.
      labels: int32 ``[N]``.
      preprocess: ``images -> floats``; default: to [0, 1].
      compute_dtype: of weights and images in ``forward``.
      perturb: an adversary, as in `make_step`; it is compiled once for each such function.
      batch_size: at most so many examples at once; the last batch is padded and the padding not counted.
      key: random key, for models that need one when they are evaluated; default: ``jax.random.key(0)``.
      mesh: where the arrays live; default: `data_mesh`.

    Returns:
      ``{"loss": ..., "accuracy": ...}``, floats.

    Raises:
      TypeError: if images or labels are not arrays, the labels not integers, or ``batch_size`` is not one.
      ValueError: if their lengths differ or are 0, a label is out of range, or ``batch_size`` is less than 1.

    >>> forward = lambda w, state, images, key, train: (images * w, state)
    >>> evaluate(forward, jnp.ones(()), {}, jnp.eye(3), jnp.array([0, 1, 1]), batch_size=2)["accuracy"]
    0.6666666666666666
    """
    check_count("batch_size", batch_size)
    check_examples("evaluate", images, labels)
    mesh = data_mesh() if mesh is None else mesh
    batch = -(-min(batch_size, len(labels)) // mesh.size) * mesh.size
    params, model_state, images, labels, key = replicate(
        (params, model_state, images, labels, jax.random.key(0) if key is None else key), mesh
    )
    totals = [
        _evaluate_batch(
            params, model_state, images, labels, key, np.int32(start), forward=forward, preprocess=preprocess,
            compute_dtype=compute_dtype, perturb=perturb, batch=batch, mesh=mesh,
        )
        for start in range(0, len(labels), batch)
    ]  # fmt: skip
    losses, correct, low, high, classes = np.asarray(jax.device_get(totals), np.float64).T
    check_labels("evaluate", int(low.min()), int(high.max()), int(classes[0]))
    return {"loss": float(losses.sum()) / len(labels), "accuracy": float(correct.sum()) / len(labels)}


class Measure:
    """``measure(state) -> (u, record)``: u = sparse(w), how well both do and how far they are apart.

    The record has ``w_loss``, ``w_accuracy``, ``u_loss``, ``u_accuracy``, if there is ``validation``, ``zeros``, the
    share of exact zeros in the matrices of u, and ``distance``, Euclidean |w - u|. Without ``sparse``, u is left out.
    With ``attack`` it has ``u_robust_loss`` and ``u_robust_accuracy``, or those of w if there is no u.

    Args:
      forward: as in `make_step`.
      sparse: ``(w, step) -> u``; step is the number of steps made.
      validation: images and labels.
      mesh: where the arrays live.
      attack: an adversary, as ``perturb`` of `evaluate`.
      **options: of `evaluate`.
    """

    def __init__(
        self,
        forward: Forward,
        sparse: Sparse | None,
        validation: Any,
        mesh: Mesh,
        attack: Perturb | None = None,
        **options: Any,
    ):
        self._attack = attack
        self.sparse: Sparse = (lambda w, step: w) if sparse is None else jax.jit(sparse)
        self._letters = "w" if sparse is None else "wu"
        self._data = None if validation is None else replicate(validation, mesh)
        self._evaluate: Callable[..., dict[str, float]] = functools.partial(evaluate, forward, mesh=mesh, **options)

    def __call__(self, state: TrainState) -> tuple[PyTree, dict[str, float]]:
        """Measures w = ``state.params``; see the class."""
        u, record = self.sparse(state.params, state.step), dict[str, float]()
        for letter, weights in zip(self._letters, (state.params, u), strict=False):
            if self._data is not None:
                found = self._evaluate(weights, state.model_state, *self._data)
                record |= {f"{letter}_{name}": value for name, value in found.items()}
        if self._attack is not None and self._data is not None:
            found = self._evaluate(u, state.model_state, *self._data, perturb=self._attack)
            record |= {f"{self._letters[-1]}_robust_{name}": value for name, value in found.items()}
        if "u" in self._letters:
            record |= {name: float(value) for name, value in jax.device_get(_gap(state.params, u)).items()}
        return u, record


@jax.jit
def _gap(w: PyTree, u: PyTree) -> dict[str, jax.Array]:
    leaves = [leaf for leaf, on in zip(jax.tree.leaves(u), jax.tree.leaves(matrices(u)), strict=True) if on]
    zeros = sum(((leaf == 0).sum() for leaf in leaves), start=jnp.zeros((), jnp.int32))
    distance = norm(jax.tree.map(jnp.subtract, w, u))
    return {"zeros": zeros / max(1, sum(leaf.size for leaf in leaves)), "distance": distance}


@functools.partial(jax.jit, static_argnames=("forward", "preprocess", "compute_dtype", "perturb", "batch", "mesh"))
def _evaluate_batch(
    params, model_state, images, labels, key, start, *, forward, preprocess, compute_dtype, perturb, batch, mesh
):  # fmt: skip
    """Over examples start, ..., start + batch - 1 that exist: loss, hits, least and greatest label; classes."""
    at = jax.lax.with_sharding_constraint(start + jnp.arange(batch, dtype=jnp.int32), NamedSharding(mesh, P("data")))
    x, y = (jnp.take(array, at, axis=0, mode="clip") for array in (images, labels))
    x, y, params = preprocess(x), y.astype(jnp.int32), cast(params, compute_dtype)
    key = jax.random.fold_in(key, start)

    def logits_fn(x, key=key, train=False):
        return forward(params, model_state, cast(x, compute_dtype), key, train)[0]

    if perturb is not None:
        key, attack_key, model_key = (jax.random.fold_in(key, i) for i in range(3))
        x = perturb(lambda x, key=model_key, train=False: logits_fn(x, key, train), x, y, attack_key)
    logits = logits_fn(x, key)
    exists = at < len(labels)
    loss = jnp.where(exists, cross_entropy(logits, y), 0).sum()
    return loss, (exists & (logits.argmax(-1) == y)).sum(), y.min(), y.max(), logits.shape[-1]
