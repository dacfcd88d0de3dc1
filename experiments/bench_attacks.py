"""What attacks and ensembles cost: over their own gradients and passes, over single networks, over two libraries.

    python -m experiments.bench_attacks             # about four minutes on two cores, with the ``bench`` extra
    python -m experiments.bench_attacks --quick

LeNet-5 is trained for a moment by PGD on MNIST, so that AutoAttack has something to do; ResNet-20 has its first
weights. PyTorch gets the same weights and images. Everything takes turns in one run; ratios are medians over rounds,
with quartiles. AutoAttack, ours and theirs, is timed as often as ``auto_rounds`` says.

Result (two cores of an AMD EPYC): PGD-20 costs 1.01 to 1.05 times 20 gradients of the same network. Ensembles of n cost
1.1 to 1.2 times the logits of n plain networks, for the noise that these do not have, 1.01 to 1.07 times their
gradients by images and 1.04 times those by weights; of n noisy networks 0.85 to 0.97 times. On LeNet-5 PGD and C&W take
0.57 to 0.62 times as long as foolbox and torchattacks, DeepFool 0.67 times; on ResNet-20 PGD 1.1 to 1.2 times.
AutoAttack takes 2.3 times its own passes, of which padding to 32 images is a part, and 1.7 times torchattacks, with the
same robust accuracy, in the one run timed. Results: experiments/results/bench_attacks.json.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import common
from experiments.timing import interleaved, ratio
from rvsm_jax import attacks, data, models
from rvsm_jax.step import init_state, make_step

EPS = {"LeNet-5": 0.2, "ResNet-20": 8 / 255}
STEPS = 20
ASKED: dict[str, tuple[bool, int | None]] = {  # of an ensemble: whether in training, by what
    "logits": (False, None),
    "gradient by images": (False, 1),
    "gradient by weights": (True, 0),
}


@dataclasses.dataclass(frozen=True)
class Options(common.Options):
    """Options of this benchmark.

    Attributes:
      rounds: how often PGD, C&W and DeepFool are timed.
      auto_rounds: how often AutoAttack is.
      auto_images: how many images it is given.
    """

    rounds: int = 7
    auto_rounds: int = 1
    auto_images: int = 32


def trained_lenet(images: jax.Array, labels: jax.Array, batches: int) -> models.Network:
    """LeNet-5 after a few batches of PGD-5 adversarial training."""
    network = models.lenet5(jax.random.key(0), activation=jax.nn.relu)
    tx = optax.adam(1e-3)

    def perturb(logits_fn, x, y, key):
        return attacks.pgd(logits_fn, x, y, key, eps=EPS["LeNet-5"], step_size=EPS["LeNet-5"] / 3, steps=5)

    step = jax.jit(make_step(network.forward, tx, perturb=perturb))
    state = init_state(network.params, network.state, tx, jax.random.key(1))
    for k in range(batches):
        at = slice(128 * k, 128 * (k + 1))
        state, _ = step(state, images[at], labels[at])
    return network._replace(params=state.params, state=state.model_state)


def logits_of(network: models.Network) -> Callable[[jax.Array], jax.Array]:
    """``images -> logits`` in evaluation mode, the weights compiled in."""
    return lambda x: network.forward(network.params, network.state, x, None, False)[0]


def cost_of_pgd(name: str, logits_fn: Any, images: jax.Array, labels: jax.Array, rounds: int) -> dict[str, Any]:
    """PGD-20, called and under ``jit``, over 20 gradients of the same network, each of them a call."""
    gradient = jax.jit(jax.grad(lambda x: attacks.cross_entropy(logits_fn(x), labels).sum()))
    options: dict[str, Any] = {"eps": EPS[name], "step_size": EPS[name] / 4, "steps": STEPS}
    whole = jax.jit(lambda x, y, key: attacks.pgd(logits_fn, x, y, key, **options))
    key = jax.random.key(2)
    calls = {
        "gradients": lambda: [gradient(images) for _ in range(STEPS)],
        "called": lambda: attacks.pgd(logits_fn, images, labels, key, **options),
        "jitted": lambda: whole(images, labels, key),
    }
    seconds = interleaved(calls, rounds)
    ratios = {k: ratio(seconds, k, "gradients") for k in ("called", "jitted")}
    return {"network": name, "batch": len(images), "seconds": float(np.median(seconds["gradients"])), **ratios}


def cost_of_ensemble(members: int, depth: int, batch: int, rounds: int) -> dict[str, Any]:
    """An ensemble's logits, gradient by images and by weights, over those of so many single networks, plain and noisy.

    The plain ones do without the noise that the ensemble's members have; a noisy one is an ensemble of one.
    """
    key = jax.random.key(0)
    networks = {"single": models.preact_resnet(key, depth=depth)}
    networks |= {
        name: models.enresnet(key, members=n, depth=depth) for name, n in (("noisy", 1), ("ensemble", members))
    }
    x = jax.random.uniform(jax.random.key(1), (batch, 32, 32, 3))
    y = jax.random.randint(jax.random.key(2), (batch,), 0, 10)
    times = {"single": members, "noisy": members, "ensemble": 1}
    ratios: dict[str, dict[str, Any]] = {"single": {}, "noisy": {}}
    for name, (train, of) in ASKED.items():

        def call(network, words, train=train, of=of):
            def loss(params, images):
                logits = network.forward(params, network.state, images, words, train)[0]
                return logits if of is None else attacks.cross_entropy(logits, y).sum()

            return jax.jit(loss if of is None else jax.grad(loss, of))

        jitted = {k: call(network, None if k == "single" else jax.random.key(3)) for k, network in networks.items()}
        calls = {k: lambda f=f, k=k: [f(networks[k].params, x) for _ in range(times[k])] for k, f in jitted.items()}
        seconds = interleaved(calls, rounds)
        for k in ratios:
            ratios[k][name] = ratio(seconds, "ensemble", k)
    return {"network": f"ResNet-{depth}", "members": members, "batch": batch, "ratio": ratios}


def library_calls(
    name: str, logits_fn: Any, module: Any, images: jax.Array, labels: jax.Array
) -> dict[str, dict[str, Callable[[], Any]]]:
    """For each attack the call of each library, on the same weights and images."""
    import foolbox
    import torch
    import torchattacks

    x = torch.tensor(np.asarray(images).transpose(0, 3, 1, 2).copy())
    y = torch.tensor(np.asarray(labels)).long()
    eps, size, key = EPS[name], EPS[name] / 4, jax.random.key(3)
    ours, theirs = np.asarray(logits_fn(images)), module(x).numpy()
    if not np.allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max()):
        raise RuntimeError(f"{name} and its twin in PyTorch differ by {np.abs(ours - theirs).max()}")
    wrapped: Any = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu")
    pgd = foolbox.attacks.LinfPGD(steps=STEPS, abs_stepsize=size)
    cw = foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=1, steps=50, initial_const=1.0, abort_early=False)
    deepfool = foolbox.attacks.L2DeepFoolAttack(steps=10)
    their_pgd = torchattacks.PGD(module, eps=eps, alpha=size, steps=STEPS)
    their_cw = torchattacks.CW(module, c=1, steps=50, lr=0.01)
    options: dict[str, Any] = {"eps": eps, "step_size": size, "steps": STEPS}
    return {
        f"PGD-{STEPS}": {
            "ours": lambda: attacks.pgd(logits_fn, images, labels, key, **options),
            "foolbox": lambda: pgd(wrapped, x, y, epsilons=eps),
            "torchattacks": lambda: their_pgd(x, y),
        },
        "C&W, 50 steps, one c": {
            "ours": lambda: attacks.carlini_wagner(logits_fn, images, labels, steps=50, searches=1, initial_c=1.0),
            "foolbox": lambda: cw(wrapped, x, y, epsilons=None),
            "torchattacks": lambda: their_cw(x, y),
        },
        "DeepFool, at most 10 steps": {
            "ours": lambda: attacks.deepfool(logits_fn, images, labels, steps=10),
            "foolbox": lambda: deepfool(wrapped, x, y, epsilons=None),
        },
    }


def against_libraries(name: str, calls: Mapping[str, Any], batch: int, rounds: int) -> list[dict[str, Any]]:
    """A row for each attack: seconds, and our time over that of each library."""
    rows = []
    for attack, of in calls.items():
        seconds = interleaved(of, rounds, warm_up=1)
        rows.append({
            "network": name,
            "batch": batch,
            "attack": attack,
            "seconds": {k: float(np.median(s)) for k, s in seconds.items()},
            "ratio": {k: ratio(seconds, "ours", k) for k in of if k != "ours"},
        })  # fmt: skip
    return rows


def cost_of_autoattack(
    logits_fn: Any, module: Any, images: jax.Array, labels: jax.Array, options: Options
) -> dict[str, Any]:
    """AutoAttack's time over that of its own forward and backward passes, and over that of torchattacks."""
    import torch
    import torchattacks

    n = len(images)
    x = torch.tensor(np.asarray(images).transpose(0, 3, 1, 2).copy())
    y = torch.tensor(np.asarray(labels)).long()
    theirs = torchattacks.AutoAttack(module, eps=EPS["LeNet-5"], n_classes=10)
    forward = jax.jit(logits_fn)
    gradient = jax.jit(jax.grad(lambda x: attacks.cross_entropy(logits_fn(x), labels).sum()))
    small: dict[str, Any] = {"steps": 10, "queries": 500} if options.quick else {}
    found: dict[str, Any] = {}

    def run():
        found["ours"] = attacks.autoattack(
            logits_fn, images, labels, jax.random.key(4), eps=EPS["LeNet-5"], batch_size=n, **small
        )
        return found["ours"].images

    calls = {
        "ours": run,
        "forward": lambda: [forward(images) for _ in range(50)],
        "gradient": lambda: [gradient(images) for _ in range(50)],
    }
    for call in calls.values():
        jax.block_until_ready(call())
    if not options.quick:
        calls["torchattacks"] = lambda: found.update(theirs=theirs(x, y))
    seconds = interleaved(calls, options.auto_rounds, warm_up=0)
    one, both = (seconds[k] / (50 * n) for k in ("forward", "gradient"))
    result = found["ours"]
    passes = sum(result.forward.values()), sum(result.backward.values())
    expected = passes[0] * one + passes[1] * np.maximum(both - one, 0)
    row = {
        "images": n, "accuracy": result.accuracy, "passes_per_image": [p / n for p in passes],
        "seconds_per_image": float(np.median(seconds["ours"]) / n),
        "over_passes": quartiles(seconds["ours"] / expected),
    }  # fmt: skip
    if "theirs" in found:
        right = module(found["theirs"]).argmax(1) == y
        row |= {"torchattacks": float(right.float().mean()), "ratio": ratio(seconds, "ours", "torchattacks")}
    return row


def quartiles(values: np.ndarray) -> dict[str, float]:
    """Median, first and third quartile."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def torch_available() -> bool:
    """Whether foolbox, torchattacks and PyTorch are there, with as many threads as there are cores."""
    try:
        import foolbox  # noqa: F401
        import torch
        import torchattacks  # noqa: F401
    except ModuleNotFoundError as error:
        print(f'without {error.name} there is no comparison: pip install -e ".[bench]"')
        return False
    torch.set_num_threads(common.cores())
    return True


def main(options: Options) -> None:
    """Measures, prints and saves."""
    started = time.time()
    rounds, batch = (2, 8) if options.quick else (options.rounds, 128)
    mnist = data.load("mnist", options.data_dir)
    images = jnp.asarray(mnist.train_images[: 128 * (20 if options.quick else 120)])
    network = trained_lenet(images, jnp.asarray(mnist.train_labels[: len(images)]), len(images) // 128)
    x = jnp.asarray(mnist.test_images[:batch], jnp.float32) / 255
    y = jnp.asarray(mnist.test_labels[:batch], jnp.int32)
    resnet = models.preact_resnet(jax.random.key(5))
    rx = jax.random.uniform(jax.random.key(6), (batch // 4, 32, 32, 3))
    cases = {"LeNet-5": (network, x, y), "ResNet-20": (resnet, rx, logits_of(resnet)(rx).argmax(1))}
    cost = [cost_of_pgd(name, logits_of(net), a, b, rounds) for name, (net, a, b) in cases.items()]
    for row in cost:
        print({k: row[k] for k in ("network", "called", "jitted")})
    ensembles = [
        cost_of_ensemble(n, 8 if options.quick else 20, batch // 4, rounds) for n in (2, 5)[: 1 if options.quick else 2]
    ]
    print(ensembles)
    rows: list[dict[str, Any]] = []
    auto: dict[str, Any] = {}
    if torch_available():
        from experiments import torch_networks

        for name, (net, a, b) in cases.items():
            calls = library_calls(name, logits_of(net), torch_networks.twin(name, net), a, b)
            calls = {k: v for k, v in calls.items() if name == "LeNet-5" or k.startswith("PGD")}
            rows += against_libraries(name, calls, len(a), rounds)
        n = min(batch, options.auto_images)
        auto = cost_of_autoattack(logits_of(network), torch_networks.twin("LeNet-5", network), x[:n], y[:n], options)
    for line in [*rows, auto]:
        print(line)
    path = common.save(
        "bench_attacks",
        options,
        started,
        rounds=rounds,
        cost=cost,
        ensembles=ensembles,
        libraries=rows,
        autoattack=auto,
    )
    print(f"saved {path}")


if __name__ == "__main__":
    common.run(main, Options, __doc__)
