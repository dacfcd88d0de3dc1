"""Sums of a survival function S(n) = P(T >= n), closed exactly: Euler's integral, and Euler-Maclaurin panels.

With f(n) = s n and e_n = e, S(n + 1) = (1 - e)^n (a)_n / (b)_n with a = 1 + 1/s, b = 1 + 2 d / s, so that sums of S are
2F1(a, 1; b; z) = (b - 1) int_0^1 u^(b-2) (1 - z (1 - u))^-a du at z = 1 - e and z = e - 1.
"""

from collections.abc import Callable

import numpy as np
from numpy.polynomial import legendre

from serw.walk import Array, Walk, constant, linear, power

NODES, WEIGHTS = legendre.leggauss(24)
FARTHEST = 1e300


def closed_form(walk: Walk) -> str | None:
    """Which closed form the reinforcement has: "constant", "linear" or None."""
    f = walk.reinforcement
    if f.rule is constant(0.0).rule or f == linear(0.0) or f == power(0.0):
        return "constant"
    return "linear" if f.rule is linear(1.0).rule or f == power(1.0) else None


def sums(walk: Walk, form: str, e: float) -> tuple[float, float, float]:
    """(E[T], P(T odd), P(T even)) where there is a closed form.

    Args:
      walk: with f constant or linear.
      form: of `closed_form`.
      e: the constant escape probability.

    Returns:
      The three sums; E[T] is infinite if it diverges.
    """
    one = np.array([1])
    stay = float(walk.stay(one)[0])
    if form == "constant":
        return 1 / float(walk.leave(one)[0]), 1 / (1 + stay), stay / (1 + stay)
    slope = walk.reinforcement.parameters[0]
    a, b = 1 + 1 / slope, 1 + 2 * walk.dim / slope
    even = stay * _euler(a + 1, b + 1, 2 - e, e - 1)
    return _euler(a, b, e, 1 - e), 1 - even if even < 0.5 else _euler(a, b, 2 - e, e - 1), even


def kind(walk: Walk) -> str:
    """The regime of a walk without escape: "diffusive", "sub-diffusive", "stuck" or "undecided".

    h(n) n -> c: E[T] is finite if c > 1 and infinite if c <= 1; h(n) = O(n^-k) with k > 1: stuck.
    """
    f, edges = walk.reinforcement, 2 * walk.dim - 1
    if f.rule is power(0.0).rule:
        a = f.parameters[0]
        f = linear(1.0) if a == 1 else f
        if a != 1:
            return "stuck" if a > 1 else "diffusive"
    if f.rule is linear(1.0).rule:
        return "diffusive" if f.parameters[0] < edges else "sub-diffusive"
    return "diffusive" if f.rule is constant(0.0).rule else _judge(walk)


def annealed(walk: Walk) -> Walk:
    """The walk itself, or, if its sequence is quenched, the one with the sequence's mean."""
    escape = walk.escape
    if not escape.quenched or escape.law is None:
        return walk
    means = type(escape)(escape.delta, escape.law)
    return Walk(walk.dim, walk.reinforcement, means)


def spread(walk: Walk, last: int) -> float:
    """Five standard deviations of sum_{j} (e_j - E e_j) over the run lengths that an excursion beyond `last` lasts."""
    e = walk.escape.probability(np.arange(1, last))
    return 5 * float(np.sqrt(e.var() / max(e.mean(), 1e-300)))


def smooth_sum(walk: Walk, start: int, alive: float) -> float:
    """sum_{n >= start} S(n), given alive = S(start), by panels of Gauss-Legendre and Euler-Maclaurin corrections.

    Args:
      walk: with smooth f and e_n; stay(n) near 1 from `start` on.
      start: >= 1000, so that the neglected corrections, O(start^-4), vanish.
      alive: S(start).

    Returns:
      The sum, to about 1e-11 of itself; a power tail is closed beyond n = 1e300.
    """
    total, x = 0.0, float(start)
    while alive * x > 1e-18 * total and x < FARTHEST:
        rate = float(_hazard(walk, np.array([x]))[0])
        y = x + min(x / 4, 2 / max(rate, 1 / FARTHEST))
        part, after = _panel(walk, x, y)
        total, alive, x = total + alive * part, alive * after, y
    if x >= FARTHEST:
        total += alive * x / (float(_hazard(walk, np.array([x]))[0]) * x - 1)
    return total


def _euler(a: float, b: float, e: float, z: float) -> float:
    """2F1(a, 1; b; z) with e = 1 - z given exactly, by u = exp(-x) in Euler's integral."""
    if e == 0:
        return (b - 1) / (b - 1 - a) if b - 1 > a else np.inf
    reach = max(0.0, -np.log(e)) + 45
    edges = np.concatenate([[0.0], np.logspace(-9, 0, 54), np.arange(1.5, reach + 1, 0.5)])
    half, middle = np.diff(edges) / 2, (edges[1:] + edges[:-1]) / 2
    x = middle[:, None] + half[:, None] * NODES
    u = np.exp(-x)
    logs = np.log(b - 1) - (b - 1) * x - a * np.log(e + z * u)
    tail = np.exp(-(b - 1) * edges[-1] - a * np.log(e))  # from there on the integrand is exponential
    return float((half[:, None] * WEIGHTS * np.exp(logs)).sum() + tail)


def _hazard(walk: Walk, n: Array) -> Array:
    return -np.log1p(-walk.leave(n))


def _panel(walk: Walk, x: float, y: float) -> tuple[float, float]:
    """(sum_{x <= n < y} S(n) / S(x), S(y) / S(x))."""
    ends = np.array([x, y])
    nodes = (x + y) / 2 + (y - x) / 2 * NODES
    rates, slopes = _hazard(walk, ends), _slope(lambda n: _hazard(walk, n), ends)
    within, slopes_within = _hazard(walk, nodes), _slope(lambda n: _hazard(walk, n), nodes)
    area = (y - x) / 2 * (_running() @ within)
    logs = area[:-1] - (within - rates[0]) / 2 + (slopes_within - slopes[0]) / 12
    last = np.exp(-(area[-1] - (rates[1] - rates[0]) / 2 + (slopes[1] - slopes[0]) / 12))
    integral = (y - x) / 2 * float(WEIGHTS @ np.exp(-logs))
    drop = last * (rates[1] - slopes[1] / 2) - (rates[0] - slopes[0] / 2)
    return integral + (1 - last) / 2 - drop / 12, float(last)


def _slope(g: Callable[[Array], Array], x: Array) -> Array:
    step = 1e-3 * x
    return (g(x + step) - g(x - step)) / (2 * step)


def _running() -> np.ndarray:
    """Row i integrates over [-1, node i] a polynomial given at the nodes; the last row over [-1, 1]."""
    if not _RUNNING:
        n = len(NODES)
        values = legendre.legvander(NODES, n - 1)
        coefficients = (np.arange(n) + 0.5)[:, None] * values.T * WEIGHTS
        integrals = legendre.legint(np.eye(n), lbnd=-1)
        _RUNNING.append(legendre.legvander(np.append(NODES, 1.0), n) @ integrals @ coefficients)
    return _RUNNING[0]


_RUNNING: list[np.ndarray] = []


def _judge(walk: Walk) -> str:
    n = np.array([1e100, 1e150])
    with np.errstate(over="ignore", under="ignore"):
        h = walk.leave(n)
    if h[1] == 0:
        return "stuck"
    order = float(np.log(h[1] / h[0]) / np.log(n[1] / n[0]))
    if abs(order + 1) > 0.02:
        return "stuck" if order < -1 else "diffusive"
    limit = h * n
    if abs(limit[1] / limit[0] - 1) > 1e-3 or abs(limit[1] - 1) < 1e-3:
        return "undecided"
    return "diffusive" if limit[1] > 1 else "sub-diffusive"
