"""A picture of what channel pruning does: the norms of every layer's channels, one network beside another."""

import math
import os
from collections.abc import Mapping

import chex
import numpy as np

from rvsm_jax.groups import Groups, channels
from rvsm_jax.proximal import Where, convolutions, selected


def plot_channel_norms(
    networks: Mapping[str, chex.ArrayTree],
    path: str | os.PathLike[str],
    *,
    where: Where = convolutions,
    groups: Groups = channels,
) -> None:
    """Draws |w_g| of every group g of every layer, largest first; groups that are zero fall off the curve's end.

    Args:
      networks: parameters by name; every network needs the same layers.
      path: the picture; its suffix says the format.
      where: which leaves are layers; default: convolution kernels.
      groups: default: input channels.

    Raises:
      ValueError: if there are no networks, where selects nothing, or networks have other layers.

    References:
      Dinh, Wang, Bertozzi, Osher and Xin, arXiv:2003.00631, Figure 5.

    >>> import tempfile, jax.numpy as jnp
    >>> kernel = jnp.ones((3, 3, 4, 8))
    >>> networks = {"dense": {"conv": kernel}, "pruned": {"conv": kernel.at[:, :, :2].set(0)}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     plot_channel_norms(networks, os.path.join(folder, "norms.png"))
    ...     os.listdir(folder)
    ['norms.png']
    """
    if not networks:
        raise ValueError("cannot plot the channel norms of no networks")
    norms = {name: _norms(params, where, groups) for name, params in networks.items()}
    layers = list(next(iter(norms.values())))
    for name, found in norms.items():
        if list(found) != layers:
            raise ValueError(f"every network needs the layers {layers}, got {list(found)} of {name!r}")
    from matplotlib.figure import Figure

    columns = min(len(layers), 5)
    rows = math.ceil(len(layers) / columns)
    figure = Figure(figsize=(3 * columns, 2.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for unused in panels[len(layers) :]:
        unused.set_axis_off()
    for axes, layer in zip(panels, layers, strict=False):
        for name, found in norms.items():
            axes.plot(np.where(found[layer] > 0, found[layer], np.nan), marker=".", label=name)
        axes.set_xlim(-0.5, len(found[layer]) - 0.5)
        axes.set_title(layer, fontsize="small")
    figure.axes[0].legend()
    figure.supxlabel("channel, by norm")
    figure.supylabel("norm")
    figure.savefig(path)


def _norms(params: chex.ArrayTree, where: Where, groups: Groups) -> dict[str, np.ndarray]:
    chosen, paths, leaves = selected(params, where)
    return {paths[i]: np.sort(np.asarray(groups(leaves[i])[0]).ravel())[::-1] for i in chosen}
