"""Exact statistics of a walk, in plain NumPy.

With T the length of an excursion (traversals of one edge in a row),

    P(T >= n) = prod_{j < n} stay(j),   p = P(T odd),   lim E|S_n|^2 / n = v = d p / ((d - p) E[T]).

The sum of an excursion's survival function is closed in one of four ways, the first that applies: f constant, a
geometric series; f linear and e_n constant, Euler's integral of a hypergeometric function; f smooth, Euler-Maclaurin
panels that follow the tail as far as it matters; otherwise a direct sum with a bound on what is left out.
"""

from typing import NamedTuple

import numpy as np

from serw import tails
from serw.walk import Walk

DIRECT = 1 << 16  # terms summed one by one before a smooth tail is closed
LONGEST = 1 << 22  # terms summed one by one where it cannot be
CLOSED = 1e-12  # relative error of the closed forms


class Excursion(NamedTuple):
    """The law of T in four numbers.

    Attributes:
      mean: E[T], infinite for a walk that is sub-diffusive or stuck.
      odd: P(T odd); of a stuck walk, the limit of the alternating sum.
      even: 1 - odd, accurate when it is small.
      bound: on the relative error of the three, except that for a quenched escape it is five standard deviations of
        what replacing the sequence beyond 2^22 by its mean can do.
    """

    mean: float
    odd: float
    even: float
    bound: float


def survival(walk: Walk, steps: int) -> np.ndarray:
    """P(T >= n) = prod_{j < n} stay(j), for n = 1..steps.

    Args:
      walk: the law.
      steps: >= 1.

    Returns:
      [steps] float64.

    >>> from serw import Walk, linear
    >>> survival(Walk(1, linear(1.0)), 4).round(3).tolist()  # 2 / (n + 1)
    [1.0, 0.667, 0.5, 0.4]
    """
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    return np.concatenate([[1.0], np.cumprod(walk.stay(np.arange(1, steps)))])


def excursion(walk: Walk) -> Excursion:
    """E[T] = sum_n P(T >= n), P(T odd) = sum_n (-1)^(n+1) P(T >= n).

    Args:
      walk: the law.

    Returns:
      The sums, and a bound on their relative error: 1e-12 where a closed form exists (f constant or linear with e_n
      constant, as in every annealed law without growth), down to delta = 1e-300.

    Raises:
      ValueError: if f is not declared smooth and the tail beyond 2^22 can be neither neglected nor bounded.

    References:
      Holmes, ECP 14 (2009); arXiv 1807.03744 for delta > 0.

    >>> from serw import Walk, linear, constant_escape
    >>> found = excursion(Walk(2, linear(1.0)))
    >>> round(found.mean, 10), round(found.odd, 5)  # d / (d - 1)
    (2.0, 0.72894)
    """
    finite = kind(walk) in ("diffusive", "ballistic")
    rate, name = walk.escape.constant, tails.closed_form(walk)
    if name is not None and rate is not None:
        mean, odd, even = tails.sums(walk, name, rate)
        return Excursion(mean if finite else np.inf, odd, even, CLOSED)
    mean, bound = _mean(walk) if finite else (np.inf, 0.0)
    odd, even, parity_bound = _parity(walk)
    return Excursion(mean, odd, even, max(bound, parity_bound))


def diffusivity(walk: Walk) -> float:
    """V = lim E|S_n|^2 / n = d p / ((d - p) E[T]); per coordinate v / d.

    Args:
      walk: the law.

    Returns:
      v: 0 for a walk that is sub-diffusive or stuck, infinite for a ballistic one.

    Raises:
      ValueError: as `excursion`.

    References:
      arXiv 1807.03744, abstract: v = O(1 / |log delta|) for d = 1, f(n) = n.

    >>> from serw import Walk, linear, constant_escape
    >>> round(diffusivity(Walk(1, linear(1.0), constant_escape(0.1))), 4)
    0.5076
    """
    what = kind(walk)
    if what != "diffusive":
        return np.inf if what == "ballistic" else 0.0
    found = excursion(walk)
    return float(walk.dim * found.odd / ((walk.dim - 1 + found.even) * found.mean))


def msd(walk: Walk, steps: int) -> np.ndarray:
    """E|S_n|^2 for n = 1..steps, by the renewal of (P(run starts), E[S.e], E|S|^2) at each new edge.

    A run born at step t with alpha = P(born), beta = E[S.e; born], gamma = E[|S|^2; born] carries these at its odd
    ages, and alpha, alpha - beta, gamma - 2 beta + alpha at its even ones. With A, B, C the sums of the three over the
    runs that end at step t, alpha, beta, gamma of step t + 1 are A, B / (2 d - 1) + A, C + 2 B / (2 d - 1) + A.

    Args:
      walk: the law.
      steps: >= 1; work grows as its square (20,000 take a few seconds).

    Returns:
      [steps] float64, without sampling error.

    >>> from serw import Walk, constant
    >>> msd(Walk(2, constant(0.0)), 5).round(12).tolist()
    [1.0, 2.0, 3.0, 4.0, 5.0]
    """
    alive = survival(walk, steps)
    ages = np.arange(steps, 0, -1)  # reversed, so that a product of two slices is a convolution
    now, odd = alive[::-1], ages % 2 == 1
    ends = now * walk.leave(ages)
    weights = np.stack([ends, ends * odd, ends * ~odd, now * odd, now * ~odd])
    alpha, beta, gamma, turned, moved = np.zeros((5, steps))
    found, born = np.empty(steps), (1.0, 1.0, 1.0)
    for t in range(steps):
        alpha[t], beta[t], gamma[t] = born
        turned[t], moved[t] = born[0] - born[1], born[2] - 2 * born[1] + born[0]
        past, (end, end_odd, end_even, now_odd, now_even) = slice(0, t + 1), weights[:, steps - t - 1 :]
        found[t] = now_odd @ gamma[past] + now_even @ moved[past]
        a, b = end @ alpha[past], end_odd @ beta[past] + end_even @ turned[past]
        c, carried = end_odd @ gamma[past] + end_even @ moved[past], b / (2 * walk.dim - 1)
        born = (a, carried + a, c + 2 * carried + a)
    return found


def kind(walk: Walk) -> str:
    """Which of "ballistic", "diffusive", "sub-diffusive", "stuck" or "undecided" the walk is."""
    if walk.dim == 1 and float(walk.leave(np.array([1]))[0]) == 1:
        return "ballistic"
    if walk.escape.delta > 0:
        return "diffusive"
    return tails.kind(walk)


def regime(walk: Walk) -> str:
    """Whether the walk is diffusive, sub-diffusive or stuck, in words.

    With h(n) = 1 - stay(n): stuck if sum h(n) is finite, so that P(T = infinity) > 0; else diffusive if E[T] is finite,
    sub-diffusive if not. Any escape makes E[T] finite. For a function f of the user's own the two sums are judged by
    the growth of n h(n) at n up to 1e150, and a case too close to the boundary is called undecided.

    Args:
      walk: the law.

    Returns:
      One sentence whose first word, up to a colon, is the regime.

    References:
      Holmes and Sakai (2007); Holmes, ECP 14 (2009).

    >>> from serw import Walk, linear, power
    >>> regime(Walk(1, linear(1.0)))
    'sub-diffusive: every edge is left, but E[T] is infinite and E|S_n|^2 / n tends to 0'
    >>> regime(Walk(2, linear(1.0)))
    'diffusive: E[T] is finite and E|S_n|^2 / n tends to 0.573484'
    >>> regime(Walk(3, power(2.0)))
    'stuck: with positive probability an edge is never left, and E|S_n|^2 stays bounded'
    """
    what = kind(walk)
    if what == "diffusive":
        return f"diffusive: E[T] is finite and E|S_n|^2 / n tends to {diffusivity(walk):.6g}"
    return {
        "ballistic": "ballistic: no edge is traversed twice in a row in d = 1, and |S_n| = n",
        "sub-diffusive": "sub-diffusive: every edge is left, but E[T] is infinite and E|S_n|^2 / n tends to 0",
        "stuck": "stuck: with positive probability an edge is never left, and E|S_n|^2 stays bounded",
        "undecided": "undecided: n (1 - stay(n)) is too close to the boundary between two regimes to judge from values",
    }[what]


def _mean(walk: Walk) -> tuple[float, float]:
    smooth = walk.reinforcement.smooth and not walk.escape.quenched
    alive = survival(walk, (DIRECT if smooth else LONGEST) + 1)
    head, left, last = float(alive[:-1].sum()), float(alive[-1]), len(alive)
    if left * last < 1e-14 * head:
        return head, CLOSED
    if walk.reinforcement.smooth:
        tail = tails.smooth_sum(tails.annealed(walk), last, left)
        return head + tail, tails.spread(walk, last) * tail / head if walk.escape.quenched else 1e-10
    rate = walk.escape.constant
    if not rate:
        raise ValueError("f is not declared smooth, and without a constant escape the sum of P(T >= n) has no bound")
    return head, left / rate / head


def _parity(walk: Walk) -> tuple[float, float, float]:
    smooth = walk.reinforcement.smooth and not walk.escape.quenched
    alive = survival(walk, (DIRECT if smooth else LONGEST) + 1)
    signs = np.where(np.arange(1, len(alive)) % 2 == 1, 1.0, -1.0)  # of P(T >= 2), P(T >= 3), ...
    partial = np.cumsum(signs * alive[1:])[-40:]
    bound = float(alive[-1]) / max(abs(float(partial[-1])), 1e-300)
    while len(partial) > 1:  # Euler's transformation of an alternating sum
        partial = (partial[1:] + partial[:-1]) / 2
    even = float(partial[0])
    return 1 - even, even, CLOSED if smooth else bound
