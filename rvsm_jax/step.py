"""One training step, as a pure function of an explicit state: ``step(state, images, labels) -> (state, metrics)``.

::

    g = grad_w mean_b loss(forward(w, perturb(preprocess(augment(images_b)))), labels_b) + weight_decay w
    updates, opt_state = tx.update(g, opt_state, w)
    w = w + updates

Shapes: a batch of B images ``[B, H, W, C]``, its labels int32 ``[B]``, logits ``[B, K]`` over K classes.
The parameters may be any tree of floating-point arrays: a dict, an ``nnx.State``, an Equinox module's arrays.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any
Forward = Callable[[PyTree, PyTree, jax.Array, jax.Array, bool], tuple[jax.Array, PyTree]]
Perturb = Callable[..., jax.Array]  # logits_fn, images, labels, key and, if it names it, step
Objective = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class TrainState(NamedTuple):
    """All that the next step needs.

    Attributes:
      step: int32 ``[]``, the number of steps made.
      params: the weights w.
      model_state: what the model keeps beside them, such as running statistics; ``{}`` if nothing.
      opt_state: the optimiser's.
      key: random key, the same for the whole run; step t draws from ``fold_in(key, t)``.
    """

    step: jax.Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    key: jax.Array


def init_state(params: PyTree, model_state: PyTree, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    """``TrainState(0, params, model_state, tx.init(params), key)``, the state before the first step.

    Its arrays are copies, so that it may be donated while the arguments live on.

    Args:
      params: tree of floating-point arrays.
      model_state: the model's other arrays; ``{}`` if none.
      tx: any chain.
      key: random key of the whole run.

    Returns:
      The state.

    Raises:
      TypeError: if a parameter is not an array of floating-point numbers, or tx no optax transformation.

    >>> state = init_state({"kernel": jnp.ones((2, 3))}, {}, optax.sgd(0.1), jax.random.key(0))
    >>> state.step, state.params["kernel"].shape
    (Array(0, dtype=int32), (2, 3))
    """
    if not isinstance(tx, optax.GradientTransformation):
        raise TypeError(f"tx must be an optax transformation (a method's is its tx), got {type(tx).__name__}")
    for path, leaf in jax.tree.leaves_with_path(params):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            seen = f"{type(leaf).__name__} of {dtype}"
            raise TypeError(f"parameters must be floating-point arrays; {leaf_name(path)!r} is {seen}")
    state = TrainState(jnp.zeros((), jnp.int32), params, model_state, tx.init(params), key)
    return jax.tree.map(jnp.copy, jax.tree.map(jnp.asarray, state))


def leaf_name(path: Any) -> str:
    """``a/b/c`` for the path of a leaf in any kind of tree.

    Args:
      path: keys as of ``jax.tree.leaves_with_path``.

    Returns:
      The keys, joined by slashes; ``""`` for a tree that is one leaf.

    >>> [leaf_name(path) for path, _ in jax.tree.leaves_with_path({"a": {"b": [1, 2]}})]
    ['a/b/0', 'a/b/1']
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matrices(params: PyTree) -> PyTree:
    """``rank >= 2``, leaf by leaf: true of matrices, convolutions included, and not of biases or scales.

    Args:
      params: tree of arrays.

    Returns:
      A tree of bools.

    >>> matrices({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': False, 'kernel': True}
    """
    return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def to_unit(images: jax.Array) -> jax.Array:
    """``images / 255`` in float32 if they are integers; floating-point ones as they are.

    Args:
      images: ``[B, H, W, C]``, or any other shape.

    Returns:
      The same shape.

    >>> to_unit(jnp.array([0, 255], jnp.uint8))
    Array([0., 1.], dtype=float32)
    """
    return images.astype(jnp.float32) / 255 if jnp.issubdtype(images.dtype, jnp.integer) else images


def norm(tree: PyTree) -> jax.Array:
    """``sqrt(sum x^2)`` over all leaves together, as ``m sqrt(sum (x / m)^2)``, m = max |x|: no overflow on the way.

    Leaf by leaf, and then of the leaves' norms, so that no leaf has to wait in memory for the last one.

    Args:
      tree: tree of real arrays.

    Returns:
      Float32 ``[]``; finite only if all of ``tree`` is.

    >>> norm({"a": jnp.array([3e20, 0.0]), "b": jnp.array(4e20)})
    Array(5.e+20, dtype=float32)
    """
    norms = [_norm(leaf.astype(jnp.float32)) for leaf in jax.tree.leaves(tree)]
    return _norm(jnp.stack(norms)) if norms else jnp.zeros(())


def _norm(x: jax.Array) -> jax.Array:
    m = jnp.clip(jnp.abs(x).max(initial=0), 1e-30, 1e30)  # so that 1 / m, which XLA may multiply by, is a normal number
    return m * jnp.sqrt(jnp.square(x / m).sum())


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """``-(1 - a) log p_y - a mean_k log p_k`` of every example, a = ``label_smoothing``.

    Args:
      logits: ``[B, K]``.
      labels: int32 ``[B]``.
      label_smoothing: the a above.

    Returns:
      ``[B]`` in float32, or in float64 if the logits are.

    >>> cross_entropy(jnp.zeros((1, 2)), jnp.array([1]), 0.1).round(4)
    Array([0.6931], dtype=float32)
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32) if jnp.finfo(logits.dtype).bits < 32 else logits)
    chosen = jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    return -(1 - label_smoothing) * chosen - (label_smoothing * log_p.mean(-1) if label_smoothing else 0.0)


def make_gradient(
    forward: Forward,
    *,
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    preprocess: Callable[[jax.Array], jax.Array] | None = None,
    perturb: Perturb | None = None,
    objective: Objective | None = None,
    weight_decay: float = 0.0,
    decay_mask: Callable[[PyTree], PyTree] = matrices,
    label_smoothing: float = 0.0,
    compute_dtype: jax.typing.DTypeLike | None = None,
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[PyTree, PyTree, dict[str, jax.Array]]]:
    """``g = grad_w mean_b cross_entropy(forward(w, images_b), labels_b) + weight_decay w``, the step without ``tx``.

    Args:
      forward: as in `make_step`.
      augment: this and all that follow are the options of `make_step`, where they are described.
      preprocess: likewise.
      perturb: likewise.
      objective: likewise.
      weight_decay: likewise.
      decay_mask: likewise.
      label_smoothing: likewise.
      compute_dtype: likewise.

    Returns:
      ``gradient(state, images, labels) -> (g, new model_state, metrics)``; g is like w, the metrics as in `make_step`.

    Raises:
      ValueError: if ``weight_decay`` is negative, ``label_smoothing`` not in [0, 1), or given with an ``objective``, or
        that without ``perturb``.

    >>> forward = lambda w, state, images, key, train: (images @ w, state)
    >>> state = init_state(jnp.zeros((2, 2)), {}, optax.sgd(1.0), jax.random.key(0))
    >>> make_gradient(forward)(state, jnp.eye(2), jnp.array([0, 1]))[0]
    Array([[-0.25,  0.25],
           [ 0.25, -0.25]], dtype=float32)
    """
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be >= 0, got {weight_decay}")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    if objective is not None and (perturb is None or label_smoothing):
        seen = f"perturb={perturb}, label_smoothing={label_smoothing}"
        raise ValueError(
            f"objective weighs images against perturbed ones: it wants perturb, and no smoothing; got {seen}"
        )

    scheduled = perturb is not None and "step" in inspect.signature(perturb).parameters

    def apply(params, model_state, images, key, train):
        logits, new = forward(cast(params, compute_dtype), model_state, cast(images, compute_dtype), key, train)
        return logits, _like(new, model_state)

    def gradient(state, images, labels):
        augmenting, perturbing, running = jax.random.split(jax.random.fold_in(state.key, state.step), 3)
        images, labels = images if augment is None else augment(augmenting, images), labels.astype(jnp.int32)
        images = (preprocess or to_unit)(images)
        clean = images
        if perturb is not None:
            attack_key, model_key = jax.random.split(perturbing)

            def logits_fn(x, key=model_key, train=False):
                return apply(state.params, state.model_state, x, key, train)[0]

            at = {"step": state.step} if scheduled else {}
            images = jax.lax.stop_gradient(perturb(logits_fn, images, labels, attack_key, **at))

        def loss(params):
            if objective is None:
                logits, model_state = apply(params, state.model_state, images, running, True)
                return cross_entropy(logits, labels, label_smoothing).mean(), (logits, model_state)
            first, second = jax.random.split(running)
            natural, model_state = apply(params, state.model_state, clean, first, True)
            logits, model_state = apply(params, model_state, images, second, True)
            return objective(natural, logits, labels).mean(), (logits, model_state)

        (value, (logits, model_state)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
        if weight_decay:
            decay = decay_mask(state.params)
            grads = jax.tree.map(lambda g, w, on: g + weight_decay * w if on else g, grads, state.params, decay)
        accuracy = (logits.argmax(-1) == labels).mean(dtype=jnp.float32)
        metrics = {"loss": value, "accuracy": accuracy, "gradient_norm": norm(grads)}
        return grads, model_state, {k: m.astype(jnp.float32) for k, m in metrics.items()}

    return gradient


def make_step(
    forward: Forward, tx: optax.GradientTransformation, **options: Any
) -> Callable[[TrainState, jax.Array, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the step: a pure function, to be jitted with its state donated, scanned or vmapped.

    Args:
      forward: ``(params, model_state, images, key, train) -> (logits, new model_state)``, pure; train is a bool.
      tx: any chain. Links that want them get the parameters, ``value`` (the loss) and ``grad``.
      **options: all optional.
        augment: ``(key, images) -> images`` as they come, uint8 say; in training only.
        preprocess: ``images -> floats``, what ``forward`` takes; default: to [0, 1].
        perturb: ``(logits_fn, images, labels, key) -> images``, an adversary inside the step. It sees what
          ``preprocess`` returns. ``logits_fn(images)`` is the model in evaluation mode, with one draw of its noise;
          ``logits_fn(images, key, train)`` with another draw, and in training mode. If it has an argument of the name
          ``step`` it is told the number of steps made. For attacks in units of pixels, keep the default
          ``preprocess`` and normalise in ``forward``.
        objective: ``(logits, logits of the perturbed images, labels) -> losses [B]``, where natural and perturbed
          images both count; default: the cross-entropy of the perturbed ones. Each kind passes through the model in
          training mode by itself, natural images first.
        weight_decay: coupled L2, ``weight_decay w`` added to the gradient ahead of ``tx``; decoupled decay is a link
          of ``tx`` instead, such as ``optax.add_decayed_weights`` behind the optimiser.
        decay_mask: ``params -> tree of bools``, where the decay acts; default: `matrices`, arrays of rank 2 or more.
        label_smoothing: share of the target spread evenly over the classes.
        compute_dtype: such as ``jnp.bfloat16``, of weights and images in ``forward``. The weights that are trained,
          the model's state and the loss keep theirs.

    Returns:
      ``step(state, images, labels) -> (state, metrics)``; metrics are float32 ``[]``: ``loss``, ``accuracy`` on this
      batch as it was trained on, and ``gradient_norm``.

    Raises:
      ValueError: as `make_gradient`.

    >>> forward = lambda w, state, images, key, train: (images.reshape(len(images), -1) @ w["kernel"], state)
    >>> state = init_state({"kernel": jnp.zeros((4, 2))}, {}, optax.sgd(1.0), jax.random.key(0))
    >>> images, labels = jnp.full((3, 2, 2, 1), 255, jnp.uint8), jnp.array([0, 0, 1])
    >>> state, metrics = jax.jit(make_step(forward, optax.sgd(1.0)))(state, images, labels)
    >>> metrics["loss"].round(4), state.step, state.params["kernel"][0].round(2)
    (Array(0.6931, dtype=float32), Array(1, dtype=int32), Array([ 0.17, -0.17], dtype=float32))
    """
    gradient, tx = make_gradient(forward, **options), optax.with_extra_args_support(tx)

    def step(state, images, labels):
        grads, model_state, metrics = gradient(state, images, labels)
        updates, opt_state = tx.update(grads, state.opt_state, state.params, value=metrics["loss"], grad=grads)
        params = optax.apply_updates(state.params, updates)
        new = TrainState(state.step + 1, params, model_state, _like(opt_state, state.opt_state), state.key)
        return new, metrics

    return step


def cast(tree: PyTree, dtype: jax.typing.DTypeLike | None) -> PyTree:
    """Floating-point leaves in ``dtype``, the others and, if it is None, all of them as they are.

    Args:
      tree: tree of arrays.
      dtype: such as ``jnp.bfloat16``, or None.

    Returns:
      A tree like it.

    >>> cast({"mean": jnp.ones(()), "count": jnp.int32(3)}, jnp.bfloat16)
    {'count': Array(3, dtype=int32), 'mean': Array(1, dtype=bfloat16)}
    """
    if dtype is None:
        return tree
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


def _like(new: PyTree, old: PyTree) -> PyTree:
    """``new`` in the dtypes of ``old``, never weakly typed, so that a state keeps its type from step to step."""

    def like(leaf, template):
        keep = jnp.issubdtype(template.dtype, jax.dtypes.extended)
        return leaf if keep else jax.lax.convert_element_type(leaf, template.dtype)

    return jax.tree.map(like, new, old)
