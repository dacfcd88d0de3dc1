"""What the sparse-training experiments share: a setting of RVSM, a run of it, and the row it leaves."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

import rvsm_jax
from rvsm_jax import data, train
from rvsm_jax.models import Network

Arrays = tuple[np.ndarray, np.ndarray]
DENSE = "dense"
PENALTIES = {"l0": rvsm_jax.l0, "l1": rvsm_jax.l1}


@dataclasses.dataclass(frozen=True)
class Setting:
    """One way to make a network sparse: lam = threshold x beta, and the pull is part of the gradient.

    Attributes:
      penalty: "dense", "l0", "l1" or "transformed_l1".
      threshold: lam / beta, the strength of the proximal map that makes u of w.
      beta: the pull's weight.
      a: shape of the transformed l1.
      ramp: over which share of the run lam grows from 0 to its value; 0: constant.
      replace: put w := u at each epoch's end, as the papers do.
      weight_decay: weight_decay w joins the gradient of every kernel.
      lasso: the weight of the group lasso on w, RGSM's lambda_2.
      multiple: how many groups of a kind are left is a multiple of it.
    """

    penalty: str
    threshold: float = 0.0
    beta: float = 0.0
    a: float = 0.1
    ramp: float = 0.0
    replace: bool = True
    weight_decay: float = 0.0
    lasso: float = 0.0
    multiple: int = 1

    def method(
        self, optimizer: optax.GradientTransformation, steps: int, groups: rvsm_jax.Coupled | None = None
    ) -> rvsm_jax.Method:
        """The transformation to train with and the network it leaves, for a run of so many steps.

        Args:
          optimizer: any optax optimiser.
          steps: how many there will be.
          groups: channels that go as a whole, weighed by the root of their size; None: single weights.

        Returns:
          The method.
        """
        if self.penalty == DENSE:
            return rvsm_jax.Method(optimizer, lambda params, step: params)
        penalty = rvsm_jax.transformed_l1(self.a) if self.penalty == "transformed_l1" else PENALTIES[self.penalty]()
        lam = self.threshold * self.beta
        ramp = optax.linear_schedule(0.0, lam, max(1, round(self.ramp * steps))) if self.ramp else lam
        if groups is None:
            return rvsm_jax.rvsm(optimizer, penalty, ramp, self.beta)
        penalty = rvsm_jax.in_multiples(penalty, self.multiple) if self.multiple > 1 else penalty
        return rvsm_jax.rgsm(optimizer, penalty, ramp, self.beta, self.lasso, groups=groups, by_size=True)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a network is trained: SGD with Nesterov momentum 0.9, the rate up in one epoch and down to 0 by a cosine.

    Attributes:
      epochs: of training.
      batch_size: of training.
      learning_rate: after the first epoch.
      shift: training images are shifted at random by up to so many pixels.
      fine_tune_epochs: in which only the weights that are left are trained.
      fine_tune_rate: the learning rate for that.
    """

    epochs: int
    batch_size: int = 128
    learning_rate: float = 0.05
    shift: int = 0
    fine_tune_epochs: int = 0
    fine_tune_rate: float = 0.02

    def optimizer(self, rate: float, steps: int) -> optax.GradientTransformation:
        """The optimiser for a run of so many steps."""
        schedule = optax.warmup_cosine_decay_schedule(0.0, rate, steps // self.epochs, steps)
        return optax.sgd(schedule, momentum=0.9, nesterov=True)


def run(
    network: Network,
    setting: Setting,
    protocol: Protocol,
    training: Arrays,
    test: Arrays,
    seed: int,
    *,
    groups: rvsm_jax.Coupled | None = None,
    **options: Any,
) -> tuple[dict[str, Any], train.FitResult]:
    """Trains, ships u, and fine-tunes its support if the protocol says so.

    Args:
      network: where to begin.
      setting: what makes it sparse.
      protocol: how it is trained.
      training: images and labels.
      test: images and labels that u is measured on, after every epoch.
      seed: for the order of the data.
      groups: channels that go as a whole; None: single weights.
      **options: of ``train.fit``.

    Returns:
      A row for a results file: accuracy of u (percent) before and after fine-tuning, non-zero weights, compression,
      seconds; and the result of the training.
    """
    steps = protocol.epochs * (len(training[1]) // protocol.batch_size)
    method = setting.method(protocol.optimizer(protocol.learning_rate, steps), steps, groups)
    augment = functools.partial(data.crop, padding=protocol.shift) if protocol.shift else None

    def fit(params, state, tx, epochs, **more):
        return train.fit(
            network.forward, params, state, tx, training, test, epochs=epochs, batch_size=protocol.batch_size,
            key=jax.random.key(seed), augment=augment, **options, **more,
        )  # fmt: skip

    replace = setting.replace and setting.penalty != DENSE
    result = fit(
        network.params, network.state, method.tx, protocol.epochs, sparse=method.sparse, replace_weights=replace,
        weight_decay=setting.weight_decay,
    )  # fmt: skip
    row = {"setting": setting, "seed": seed, **_measured(result)}
    if protocol.fine_tune_epochs and setting.penalty != DENSE:
        row["fine_tuned"] = _fine_tuned(fit, result, protocol, len(training[1]))
    return row, result


def _fine_tuned(
    fit: Callable[..., train.FitResult], result: train.FitResult, protocol: Protocol, examples: int
) -> float:
    """The accuracy of u, percent, after training the weights that are left, at a small rate."""
    steps = protocol.fine_tune_epochs * (examples // protocol.batch_size)
    tx = optax.chain(protocol.optimizer(protocol.fine_tune_rate, steps), rvsm_jax.fixed_support())
    tuned = fit(result.sparse_params, result.model_state, tx, protocol.fine_tune_epochs)
    before, after = (rvsm_jax.sparsity(r).nonzeros for r in (result.sparse_params, tuned.params))
    if after > before:
        raise AssertionError(f"fine-tuning was to keep the support, non-zero weights went from {before} to {after}")
    return percent(tuned.history[-1], "w_accuracy")


def percent(record: train.Record, name: str) -> float:
    """A share in a record of ``train.fit``, in percent; NaN if it was not finite."""
    share = record[name]
    return math.nan if share is None else 100 * share


def _measured(result: train.FitResult) -> dict[str, Any]:
    report = rvsm_jax.sparsity(result.sparse_params)
    return {
        "accuracy": percent(result.history[-1], "u_accuracy"),
        "weights": report.weights,
        "nonzeros": report.nonzeros,
        "zeros": 100 * report.fraction,
        "compression": report.compression,
        "bitmask_bytes": report.bytes("bitmask"),
        "layers": {row.path: row.nonzeros for row in report.rows},
        "seconds": sum(record["seconds"] or 0.0 for record in result.history),
    }


def mnist(folder: pathlib.Path | None, *, select: bool, quick: bool) -> tuple[Arrays, Arrays]:
    """Images and labels to train on, and those to measure on: the test set, or with ``select`` 5,000 held out.

    Args:
      folder: of the data.
      select: whether to leave the test set alone.
      quick: whether to take 6,000 and 1,000 of them.

    Returns:
      Both.
    """
    found = data.load("mnist", folder)
    training, test = (found.train_images, found.train_labels), (found.test_images, found.test_labels)
    if select:
        training, test = data.split(*training, validation=5000, seed=0)
    if quick:
        training, test = ((images[:n], labels[:n]) for (images, labels), n in ((training, 6000), (test, 1000)))
    return training, test
