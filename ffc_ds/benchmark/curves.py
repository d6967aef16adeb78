"""A figure of accuracy over what was spent on it."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ffc_ds.evaluation.figures import DPI


def draw_curves(panels: dict[str, dict[str, np.ndarray]], along: list[str], path: Path) -> None:
    """Panels side by side, by title, of curves by label, [points, 2]: what was spent, in the unit of `along`, one for
    each panel, and the share of pairs that was judged rightly."""
    figure = Figure(figsize=(5.5 * len(panels), 4.5), layout="constrained")
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, what, (title, curves) in zip(all_axes, along, panels.items(), strict=True):
        for label, curve in curves.items():
            axes.plot(curve[:, 0], 100 * curve[:, 1], label=label, marker="o", markersize=3)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(what)
        axes.set_title(title, fontsize="medium")
    all_axes[0].set_ylabel("verification accuracy, %")
    for axes in all_axes if len({tuple(curves) for curves in panels.values()}) > 1 else all_axes[:1]:
        axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=DPI)
