"""A figure for comparisons with few repetitions: every value a dot, their mean a line."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ffc_ds.evaluation.figures import DPI


def dot_chart(panels: Mapping[str, Mapping[str, Sequence[float]]], what: str, path: str | os.PathLike) -> None:
    """Draw a panel for each title and in it a row for each label, with its values; all share one axis, `what`."""
    heights = [len(rows) for rows in panels.values()]
    figure = Figure(figsize=(8, 0.9 * len(panels) + 0.28 * sum(heights)), layout="constrained")
    all_axes = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=[n + 1 for n in heights])[:, 0]
    for axes, (title, rows) in zip(all_axes, panels.items(), strict=True):
        for place, values in enumerate(rows.values()):
            axes.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.6, markersize=5)
            axes.plot([np.mean(values)] * 2, [place - 0.35, place + 0.35], color="black")
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.4)
        axes.set_title(title, fontsize="medium", loc="left")
    all_axes[-1].set_xlabel(what)
    figure.savefig(path, dpi=DPI)
