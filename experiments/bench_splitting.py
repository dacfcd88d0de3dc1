"""What RVSM and ADMM cost: their steps over the plain step, and a vmapped path over one run after the other.

    python -m experiments.bench_splitting             # about ten minutes on two cores
    python -m experiments.bench_splitting --quick

Everything is interleaved in one run and given as the median over rounds of a ratio, with quartiles. The comparison of
training steps with PyTorch is in bench_training.py. Results: experiments/results/bench_splitting.json.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import rvsm_jax
from experiments import common
from experiments.lambda_path import make_lane, vmapped
from experiments.timing import interleaved, ratio
from rvsm_jax import models, train

BATCH = 128
PENALTIES = {"l0": rvsm_jax.l0(), "l1": rvsm_jax.l1(), "transformed_l1": rvsm_jax.transformed_l1(0.1)}
DECAY = "none, optax's weight decay in its place"
ADMM = "top_k by ADMM, between its updates"


@dataclasses.dataclass(frozen=True)
class BenchOptions(common.Options):
    """Options of this benchmark.

    Attributes:
      rounds: how often everything is timed.
      lanes: strengths in the vmapped path.
    """

    rounds: int = 31
    lanes: int = 16


def sgd() -> optax.GradientTransformation:
    """The optimiser of every step timed here."""
    return optax.sgd(0.01, momentum=0.9, nesterov=True)


def step_cost(network: models.Network, image_shape: tuple[int, int, int], rounds: int) -> list[dict[str, Any]]:
    """Time and compiled peak memory of an RVSM or ADMM step over those of the plain step.

    Args:
      network: what is trained.
      image_shape: (H, W, C) of its images.
      rounds: how often each step is timed.

    Returns:
      A row for each penalty, one for ADMM in a step that leaves its copy and dual as they are, and one for the
      cheapest link there is in the same place, a weight decay.
    """
    prune = rvsm_jax.proximal_operator(rvsm_jax.top_k(0.05))
    chains = {name: rvsm_jax.rvsm(sgd(), penalty, 1e-6, 1e-2).tx for name, penalty in PENALTIES.items()}
    chains |= {ADMM: optax.chain(rvsm_jax.admm_splitting(prune, 1e-2, every=1_000_000), sgd())}
    chains |= {"plain": sgd(), DECAY: optax.chain(optax.add_decayed_weights(1e-4), sgd())}
    runs = {name: Run(network, tx, *batch(image_shape)) for name, tx in chains.items()}
    seconds = interleaved(runs, rounds)
    return [
        {
            "penalty": name,
            "milliseconds": 1e3 * float(np.median(seconds[name])),
            "plain_milliseconds": 1e3 * float(np.median(seconds["plain"])),
            "time": ratio(seconds, name, "plain"),
            "memory": runs[name].peak_bytes / runs["plain"].peak_bytes,
        }
        for name in (*PENALTIES, ADMM, DECAY)
    ]


class Run:
    """A compiled step that trains on when it is called, its state donated."""

    def __init__(self, network: models.Network, tx: optax.GradientTransformation, images, labels):
        state = train.init_state(network.params, network.state, tx, jax.random.key(0))
        step = jax.jit(train.make_step(network.forward, tx), donate_argnums=0)
        self._compiled = step.lower(state, images, labels).compile()
        self._state, self._batch = state, (images, labels)

    def __call__(self):
        """One step."""
        self._state, metrics = self._compiled(self._state, *self._batch)
        return metrics

    @property
    def peak_bytes(self) -> int:
        """Arguments, results and temporaries of the compiled step, buffers that are reused counted once."""
        memory: Any = self._compiled.memory_analysis()
        held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        return held + memory.temp_size_in_bytes


def path_cost(lanes: int, steps: int, rounds: int) -> dict[str, Any]:
    """A path of strengths of LeNet-300-100 as one vmapped run, over as many runs one after the other.

    The runs take a call a step, as the training loop does on a CPU; scanned, one call, as the path does.

    Args:
      lanes: how many strengths.
      steps: how many training steps make a run.
      rounds: how often all are timed.

    Returns:
      A row: the ratios, and the seconds of all three.
    """
    network = models.lenet_300_100(jax.random.key(0))
    strengths = jnp.geomspace(1e-6, 1e-3, lanes), jnp.full(lanes, 0.1)
    images, labels = batch((28, 28, 1))
    lane = make_lane(network.forward, rvsm_jax.l1(), sgd())
    many_init, many = vmapped(*lane, lanes=lanes)
    one_init, one = jax.jit(lane[0]), jax.jit(lane[1], donate_argnums=0)
    start = network.params, network.state, jax.random.key(0)

    def together():
        return many(many_init(*start, *strengths), *strengths, images, labels, order(steps))

    def in_turn(calls: int):
        rows = order(steps // calls)
        for lam, beta in zip(*strengths, strict=True):
            state = one_init(*start, lam, beta)
            for _ in range(calls):
                state, _ = one(state, lam, beta, images, labels, rows)
        return state

    runs = {"together": together, "in turn": lambda: in_turn(steps), "scanned in turn": lambda: in_turn(1)}
    seconds = interleaved(runs, rounds, warm_up=1)
    return {
        "lanes": lanes,
        "steps": steps,
        "time": ratio(seconds, "together", "in turn"),
        "time_scanned": ratio(seconds, "together", "scanned in turn"),
        "seconds": {name: float(np.median(s)) for name, s in seconds.items()},
    }


def order(steps: int) -> jax.Array:
    """The same batch, so many times."""
    return jnp.tile(jnp.arange(BATCH), (steps, 1))


def batch(image_shape: tuple[int, int, int]) -> tuple[jax.Array, jax.Array]:
    """Random images and labels."""
    key = jax.random.key(0)
    return jax.random.randint(key, (BATCH, *image_shape), 0, 256).astype(jnp.uint8), jnp.arange(BATCH) % 10


def main(options: BenchOptions) -> None:
    """Runs all of it and saves."""
    started, key = time.time(), jax.random.key(options.seed)
    rounds = 3 if options.quick else options.rounds
    networks: dict[str, Callable[[], Any]] = {
        "LeNet-5": lambda: step_cost(models.lenet5(key), (28, 28, 1), rounds),
        "ResNet-18": lambda: step_cost(models.resnet18(key), (32, 32, 3), max(3, rounds // 4)),
    }
    if options.quick:
        del networks["ResNet-18"]
    rows = [{"network": name, **row} for name, cost in networks.items() for row in cost()]
    for row in rows:
        print(f"{row['network']} {row['penalty']}: {_show(row['time'])} x the plain step, memory {row['memory']:.3f} x")
    path = path_cost(4 if options.quick else options.lanes, 10 if options.quick else 100, max(3, rounds // 4))
    scanned = _show(path["time_scanned"])
    print(f"{path['lanes']} strengths together: {_show(path['time'])} x one after the other, scanned: {scanned} x")
    saved = common.save("bench_splitting", options, started, batch=BATCH, rounds=rounds, steps=rows, path=path)
    print(f"Numbers in {saved}")


def _show(measured: dict[str, float]) -> str:
    return f"{measured['median']:.3f} ({measured['low']:.3f} to {measured['high']:.3f})"


if __name__ == "__main__":
    common.one_device_per_core()
    common.run(main, BenchOptions, __doc__)
