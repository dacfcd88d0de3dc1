"""What a robust and sparse network is worth as it ships: accuracy under each attack, sparsity, work, in one row."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rvsm_jax
from rvsm_jax import attacks
from rvsm_jax.models import Network, draw_noise

BATCH = 250
TOLERANCE = 1e-15  # of a channel's norm, as published
Attack = Callable[..., jax.Array]


class Shipped(NamedTuple):
    """The network that ships.

    Attributes:
      logits_fn: ``images -> logits``, or ``(images, key) -> logits`` with noise.
      multiply_adds: for one image, before and after its channels were removed.
      parameters: likewise.
    """

    logits_fn: Callable[..., jax.Array]
    multiply_adds: rvsm_jax.shrinking.Change
    parameters: rvsm_jax.shrinking.Change


def ship(network: Network, u: Any, state: Any, words: tuple[int, int, int] | None, image: jax.Array) -> Shipped:
    """Removes the channels of u that are of no use, and hands out what is left as a function of images.

    Args:
      network: the network.
      u: its sparse weights.
      state: its state.
      words: shape of the random words that a forward pass draws; None without noise.
      image: one image, [H, W, C].

    Returns:
      The network that ships; its noise is drawn anew with each key.
    """

    def fn(v, x):
        return network.forward(v["params"], v["state"], x, v.get("noise"), False)[0]

    noise = {} if words is None else {"noise": draw_noise(jax.random.key(0), words)}
    small_fn, small, report = rvsm_jax.shrink(fn, {"params": u, "state": state, **noise}, image[None])
    if words is None:
        logits_fn = jax.tree_util.Partial(small_fn, small)
    else:
        logits_fn = jax.tree_util.Partial(lambda v, x, key: small_fn(v | {"noise": draw_noise(key, words)}, x), small)
    return Shipped(logits_fn, report.multiply_adds, report.parameters)


def published_attacks(eps: float) -> Mapping[str, Attack]:
    """The attacks of the published tables: steps of eps / 8, 1/255 for 8/255, and C&W without a search for c."""

    def iterated(logits_fn, images, labels, key):
        return attacks.pgd(
            logits_fn, images, labels, key, eps=eps, step_size=eps / 8, steps=20, random_start=False
        )  # fmt: skip

    return {
        "fgsm": lambda logits_fn, images, labels, key: attacks.fgsm(logits_fn, images, labels, key, eps=eps),
        "ifgsm20": iterated,
        "cw": lambda *arguments: attacks.carlini_wagner_as_released(*arguments, eps=1.0),
    }


def accuracies(
    logits_fn: Callable[..., jax.Array], named: Mapping[str, Attack], images: Any, labels: Any, key: jax.Array
) -> dict[str, float]:
    """Accuracy in percent, as the images are ("natural") and under each attack; noise is drawn anew to judge.

    An image that is misclassified as it is counts as misclassified under every attack: the adversary may leave it be.

    Args:
      logits_fn: the network.
      named: attacks, ``(logits_fn, images, labels, key) -> images``, by name.
      images: uint8 [N, H, W, C].
      labels: [N].
      key: random key.

    Returns:
      The accuracies by name.
    """
    random = attacks.loop.takes_key(logits_fn)
    judge = jax.jit(lambda f, x, k: (f(x, k) if random else f(x)).argmax(-1))
    right: dict[str, list[np.ndarray]] = {name: [] for name in ("natural", *named)}
    for start in range(0, len(labels), BATCH):
        x, y = jnp.asarray(images[start : start + BATCH], jnp.float32) / 255, jnp.asarray(labels[start : start + BATCH])
        for i, name in enumerate(right):
            attack_key, judge_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, start), i))
            twins = x if name == "natural" else named[name](logits_fn, x, y, attack_key)
            found = np.asarray(judge(jax.tree_util.Partial(logits_fn), twins, judge_key) == y)
            right[name].append(found if name == "natural" else found & right["natural"][-1])
    return {name: 100 * float(np.concatenate(found).mean()) for name, found in right.items()}


def distances(
    logits_fn: Callable[[jax.Array], jax.Array], attack: Attack, images: Any, labels: Any
) -> dict[str, float]:
    """mean_i 1{x_i is classified correctly} |x_i' - x_i|_2, x_i' the nearest adversarial image that an attack finds.

    An image that the attack does not fool counts as 0, and among the ``unfooled``: nothing is known of its distance.

    Args:
      logits_fn: the network, without noise.
      attack: ``(logits_fn, images, labels) -> images``, such as ``attacks.deepfool``.
      images: uint8 [N, H, W, C].
      labels: [N].

    Returns:
      "mean"; "unfooled", the share in percent of images that are right and stay so.
    """
    judge, far, unfooled = jax.jit(lambda f, x: f(x).argmax(-1)), [], []
    for start in range(0, len(labels), BATCH):
        x, y = jnp.asarray(images[start : start + BATCH], jnp.float32) / 255, jnp.asarray(labels[start : start + BATCH])
        twins = attack(logits_fn, x, y)
        right, still = (np.asarray(judge(jax.tree_util.Partial(logits_fn), points) == y) for points in (x, twins))
        moved = np.sqrt(np.square(np.asarray(twins - x, np.float64)).reshape(len(y), -1).sum(1))
        far.append(np.where(right & ~still, moved, 0))
        unfooled.append(right & still)
    return {"mean": float(np.concatenate(far).mean()), "unfooled": 100 * float(np.concatenate(unfooled).mean())}


def sparsities(u: Any) -> dict[str, float]:
    """Zero weights and channels of norm < 1e-15 of the convolutions, in percent."""
    report = rvsm_jax.sparsity(u, where=rvsm_jax.convolutions, tolerance=TOLERANCE)
    channels = [row.groups["channels"] for row in report.rows]
    share = sum(c.zero for c in channels) / sum(c.total for c in channels)
    exact = rvsm_jax.sparsity(u, where=rvsm_jax.convolutions)
    return {"zeros": 100 * exact.fraction, "zero_channels": 100 * share}
