"""Networks that really shrink: what zeros have made useless is removed from any JAX function, by its jaxpr.

    small_fn, small_variables, report = shrink(fn, variables, example)      # the same outputs
    small_state = report.take(optimizer_state)                              # and training goes on,
    small_loss = follow(loss, small_variables, report)                      # with any function of the variables
    report = measure(report, fn, variables, small_fn, small_variables)      # print(report): channels, work and time

`fn` is traced and its calls inlined (`program`); known values go forwards through the operations (`analysis`), boxes of
what is needed go backwards (`plan`), and the small function runs the same operations on what is left (`small`). Each
kind of operation has a rule that answers for it (`rule`, `rules`); `register` adds one.

    groups = coupled_channels(fn, params, example)          # what can go as a whole: groups to train with

Indices that operations tie together are labelled alike (`ties`, `labels`), and make a channel (`coupling`).
"""

from rvsm_jax.shrinking.coupling import coupled_channels
from rvsm_jax.shrinking.follow import follow
from rvsm_jax.shrinking.function import Folded
from rvsm_jax.shrinking.measure import measure
from rvsm_jax.shrinking.picture import plot_channel_norms
from rvsm_jax.shrinking.program import ShrinkError
from rvsm_jax.shrinking.record import from_record, to_record
from rvsm_jax.shrinking.removal import shrink
from rvsm_jax.shrinking.report import Change, Cost, Layer, Leaf, Report
from rvsm_jax.shrinking.rule import RULES, Facts, Known, Rule, register

__all__ = [
    "RULES",
    "Change",
    "Cost",
    "Facts",
    "Folded",
    "Known",
    "Layer",
    "Leaf",
    "Report",
    "Rule",
    "ShrinkError",
    "coupled_channels",
    "follow",
    "from_record",
    "measure",
    "plot_channel_norms",
    "register",
    "shrink",
    "to_record",
]
