"""Figures of an evaluation: ROC curves, scores, pairs of pictures, learning curves. PNG at 150 dots per inch."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ffc_ds.evaluation.scores import BINS
from ffc_ds.evaluation.verification import VerificationResult

DPI = 150


def roc_figure(results: Mapping[str, VerificationResult], path: str | os.PathLike) -> None:
    """Draw one ROC curve a result, labelled by its key, over a logarithmic false accept rate.

    The axis starts at the smallest rate above 0 that any result reaches. Raises ValueError if there is no result.
    """
    labels = {key: f"{key}: accuracy {each.accuracy:.3f}, AUC {each.auc:.3f}" for key, each in results.items()}
    roc_curves({labels[key]: (each.fpr, each.tpr) for key, each in results.items()}, path)


def roc_curves(curves: Mapping[str, tuple[np.ndarray, np.ndarray]], path: str | os.PathLike) -> None:
    """Draw ROC curves (false and true accept rates, ascending) by their labels, as `roc_figure` does."""
    if not curves:
        raise ValueError("an ROC figure needs at least one result")
    figure, (axes,) = _figure(1)
    for label, (fpr, tpr) in curves.items():
        axes.step(fpr, tpr, where="post", label=label)
    resolved = min(fpr[fpr > 0].min(initial=1) for fpr, _ in curves.values())
    axes.set(xscale="log", xlim=(min(resolved, 0.1), 1), ylim=(0, 1.01))
    axes.set(xlabel="false accept rate", ylabel="true accept rate", title="Verification ROC")
    axes.legend(loc="best")
    figure.savefig(path, dpi=DPI)


def score_histograms(panels: Mapping[str, Mapping[str, np.ndarray]], path: str | os.PathLike) -> None:
    """Draw a panel a protocol: for each kind of pair, by its label, how its scores lie.

    Counts (int [200]) are those of `scores.histogram`; drawn is their share, since kinds differ in size by thousands.
    """
    figure, all_axes = _figure(len(panels))
    for axes, (title, counts) in zip(all_axes, panels.items(), strict=True):
        for label, count in counts.items():
            total = count.sum()
            axes.stairs(count / max(total, 1), BINS, fill=True, alpha=0.6, label=f"{label} ({total:,})")
        axes.set(ylabel="share", title=title)
        axes.legend(loc="best")
    all_axes[-1].set(xlabel="cosine of the embeddings")
    figure.savefig(path, dpi=DPI)


def pair_pictures(rows: Mapping[str, Sequence[tuple[np.ndarray, float]]], path: str | os.PathLike) -> None:
    """Draw rows of pairs, each row under its label: two pictures side by side (uint8 [S, 2 S, 3]) above their score."""
    columns = max(map(len, rows.values()))
    figure = Figure(figsize=(1.7 * columns, 1.25 * len(rows)), layout="constrained")
    for strip, (label, pairs) in zip(np.atleast_1d(figure.subfigures(len(rows), 1)), rows.items(), strict=True):
        strip.suptitle(label, fontsize=7)
        for axes, pair in zip_longest(strip.subplots(1, columns, squeeze=False)[0], pairs):
            axes.set_axis_off()
            if pair is not None:
                axes.imshow(pair[0])
                axes.set_title(f"{pair[1]:.3f}", fontsize=6, y=-0.2)
    figure.savefig(path, dpi=DPI)


def learning_curve(
    rows: Iterable[Mapping],
    curves: Mapping[str, str],
    path: str | os.PathLike,
    losses: Mapping[str, str] | None = None,
    x: str = "step",
    ylabel: str = "verification accuracy",
) -> None:
    """Draw logged values over training: rows as in metrics.jsonl, `curves` maps their keys to labels.

    `losses`, likewise, go to a second panel below. A row that lacks a key or holds None or a non-finite value for it is
    left out of that curve. Raises ValueError if a key has no value in any row.
    """
    rows = list(rows)
    panels = [(curves, ylabel)] + ([(losses, "loss")] if losses else [])
    figure, all_axes = _figure(len(panels))
    for axes, (keys, name) in zip(all_axes, panels, strict=True):
        for key, label in keys.items():
            _draw_curve(axes, rows, x, key, label)
        axes.set(ylabel=name)
        axes.legend(loc="best")
    all_axes[0].set(title="Learning curve")
    all_axes[-1].set(xlabel=x)
    figure.savefig(path, dpi=DPI)


def _draw_curve(axes: Axes, rows: list[Mapping], x: str, key: str, label: str) -> None:
    points = [(row[x], row[key]) for row in rows if x in row and row.get(key) is not None and math.isfinite(row[key])]
    if not points:
        raise ValueError(f"no row has a value for {key!r} over {x!r}")
    # Few points are evaluations, each worth a mark; many are a log of steps.
    marker = "o" if len(points) <= 50 else ""
    axes.plot(*zip(*points, strict=True), label=label, marker=marker, markersize=3, linewidth=1)


def _figure(panels: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(7, 1.5 + 3 * panels), layout="constrained")
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    for each in axes:
        each.grid(alpha=0.3, which="both")
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes
