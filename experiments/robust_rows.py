"""The rows of the tables of "Sparsity meets robustness", by name, with what was published of each.

References:
  Dinh, Wang, Bertozzi, Osher, Xin, arXiv 2003.00631: Table 1 (RVSM, lambda = 1e-6), 2 and 3 (RGSM, beta = 1,
  lambda_2 = 1e-5) and 4 (against ADMM, with the shares and rho of the released code's examples; what ships here is the
  projection, so its sparsity is that share, where the published networks have less).
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import optax

import rvsm_jax
from rvsm_jax import models

DENSE, RVSM, RGSM, ADMM, ADMM_CHANNELS = "dense", "RVSM", "RGSM", "ADMM", "ADMM-channels"
Published = tuple[float, ...]  # natural, FGSM, IFGSM20, C&W accuracy and the sparsity of the row's kind, in percent


@dataclasses.dataclass(frozen=True)
class Net:
    """A network: members = 1 without noise is a plain ResNet."""

    members: int
    depth: int
    width: int = 16
    noise: float = 0.1

    def build(self, key: jax.Array, channels: int, noise_over: models.Over = "image") -> models.Network:
        """The network with its initial weights."""
        return models.enresnet(
            key, members=self.members, depth=self.depth, width=self.width, noise=self.noise, noise_over=noise_over,
            channels=channels,
        )  # fmt: skip

    @property
    def words(self) -> tuple[int, int, int] | None:
        """The shape of the random words that a forward pass draws; None without noise."""
        return (self.members, (self.depth - 2) // 2, 2) if self.noise else None


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
      net: a name in `NETS`.
      method: "dense", "RVSM", "RGSM", "ADMM" or "ADMM-channels".
      lam: lambda of RVSM, lambda_1 of RGSM, the share that ADMM keeps.
      beta: of the first two, rho of ADMM.
      lam2: lambda_2 of RGSM.
      tables: where it was published.
      published: what was published.
    """

    net: str
    method: str = DENSE
    lam: float = 0.0
    beta: float = 0.0
    lam2: float = 0.0
    tables: tuple[int, ...] = ()
    published: Published = ()

    @property
    def name(self) -> str:
        """By which the row is asked for, such as "En2ResNet20-RGSM-0.05"."""
        strength = {RVSM: f"-{self.beta:g}", RGSM: f"-{self.lam:g}"}.get(self.method, "")
        return f"{self.net}-{self.method}{strength}"

    @property
    def structured(self) -> bool:
        """Whether whole channels go."""
        return self.method in (RGSM, ADMM_CHANNELS)

    def chain(
        self, sgd: optax.GradientTransformation, rate: float | optax.Schedule | None, every: int
    ) -> rvsm_jax.Method:
        """The method around an optimiser.

        Args:
          sgd: the optimiser.
          rate: None for the pull inside it; the learning rate for the pull outside, as RVSM and RGSM were released.
          every: steps between updates of ADMM's copy.

        Returns:
          The method.
        """
        common: dict[str, Any] = {"where": rvsm_jax.convolutions, "learning_rate": rate}
        if self.method == DENSE:
            return rvsm_jax.Method(sgd, lambda params, step: params)
        if self.method == RVSM:
            return rvsm_jax.rvsm(sgd, rvsm_jax.l0(), self.lam, self.beta, **common)
        if self.method == RGSM:
            return rvsm_jax.rgsm(sgd, rvsm_jax.l0(), self.lam, self.beta, self.lam2, **common)
        groups = rvsm_jax.channels if self.structured else rvsm_jax.weights
        prox = rvsm_jax.proximal_operator(rvsm_jax.top_k(self.lam), groups, rvsm_jax.convolutions)
        tx = optax.chain(rvsm_jax.admm_splitting(prox, self.beta, every=every), sgd)
        return rvsm_jax.Method(tx, lambda params, step: prox(params, 1.0))


NETS = {
    "ResNet20": Net(1, 20, noise=0.0),
    "ResNet38": Net(1, 38, noise=0.0),
    "En2ResNet20": Net(2, 20),
    "En5ResNet20": Net(5, 20),
    "ResNet8": Net(1, 8, 8, noise=0.0),
    "En2ResNet8": Net(2, 8, 8),
}


def _rgsm(net: str, lam: float, tables: tuple[int, ...], *published: float) -> Row:
    return Row(net, RGSM, lam, 1.0, 1e-5, tables, published)


def _rvsm(net: str, beta: float, tables: tuple[int, ...], *published: float) -> Row:
    return Row(net, RVSM, 1e-6, beta, 0.0, tables, published)


PUBLISHED = (
    Row("ResNet20", tables=(1, 2), published=(76.07, 51.24, 47.25, 59.30, 0)),
    Row("En2ResNet20", tables=(1, 2, 3), published=(80.34, 57.11, 50.02, 66.77, 0)),
    _rgsm("ResNet20", 5e-2, (2,), 75.91, 51.52, 47.14, 58.77, 8.00),
    _rgsm("En2ResNet20", 5e-2, (2, 3), 78.28, 56.53, 49.58, 66.56, 41.48),
    Row("ResNet38", tables=(3,), published=(78.03, 54.09, 49.81, 61.72, 0)),
    _rgsm("ResNet38", 5e-2, (3,), 77.92, 53.51, 49.35, 60.32, 17.67),
    _rgsm("ResNet20", 1e-1, (2, 4), 71.84, 48.23, 45.21, 57.09, 25.33),
    _rgsm("En2ResNet20", 1e-1, (2, 3), 75.87, 54.65, 47.77, 65.41, 56.74),
    _rgsm("ResNet38", 1e-1, (3,), 72.95, 49.78, 46.48, 57.92, 43.80),
    _rvsm("ResNet20", 0.01, (1, 4), 70.26, 46.68, 43.79, 55.59, 80.91),
    _rvsm("ResNet20", 0.1, (1,), 73.45, 49.48, 45.79, 57.72, 56.88),
    _rvsm("ResNet20", 0.5, (1,), 74.08, 50.64, 46.67, 57.24, 39.92),
    _rvsm("En2ResNet20", 0.01, (1,), 72.81, 51.98, 46.62, 63.10, 89.86),
    _rvsm("En2ResNet20", 0.1, (1,), 77.78, 55.48, 49.26, 65.56, 70.55),
    _rvsm("En2ResNet20", 0.5, (1,), 78.47, 56.13, 49.54, 65.57, 56.34),
    Row("En5ResNet20", tables=(2,), published=(81.41, 58.21, 51.60, 66.48, 0)),
    _rgsm("En5ResNet20", 1e-2, (2,), 81.46, 58.34, 51.35, 66.84, 19.76),
    _rgsm("En5ResNet20", 2e-2, (2,), 80.53, 57.38, 50.63, 66.52, 53.36),
    Row("ResNet20", ADMM, 0.2, 0.01, 0.0, (4,), (71.55, 47.37, 44.30, 55.79, 10.92)),
    Row("ResNet20", ADMM_CHANNELS, 0.4, 0.01, 0.0, (4,), (63.99, 42.06, 39.75, 51.90, 4.44)),
)


def reduced(lam: float, lam2: float, rvsm: tuple[float, float]) -> Iterator[Row]:
    """The rows of the small protocol: both small networks, dense, by channels and by single weights."""
    for method, net in itertools.product((DENSE, RGSM, RVSM), ("ResNet8", "En2ResNet8")):
        strengths = {DENSE: (0.0, 0.0, 0.0), RGSM: (lam, 1.0, lam2), RVSM: (*rvsm, 0.0)}[method]
        yield Row(net, method, *strengths)
