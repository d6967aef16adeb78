"""Figures of an evaluation: ROC curves, distances of pairs, learning curves. PNG files at 150 dots per inch."""

import math
import os
from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ffc_ds.evaluation.verification import VerificationResult

DPI = 150


def roc_figure(results: Mapping[str, VerificationResult], path: str | os.PathLike) -> None:
    """Draw one ROC curve a result, labelled by its key, over a logarithmic false accept rate.

    The axis starts at the smallest rate above 0 that any result reaches. Raises ValueError if there is no result.
    """
    if not results:
        raise ValueError("an ROC figure needs at least one result")
    figure, (axes,) = _figure(1)
    for label, result in results.items():
        label = f"{label}: accuracy {result.accuracy:.3f}, AUC {result.auc:.3f}"
        axes.step(result.fpr, result.tpr, where="post", label=label)
    resolved = min(result.fpr[result.fpr > 0].min() for result in results.values())
    axes.set(xscale="log", xlim=(min(resolved, 0.1), 1), ylim=(0, 1.01))
    axes.set(xlabel="false accept rate", ylabel="true accept rate", title="Verification ROC")
    axes.legend(loc="best")
    figure.savefig(path, dpi=DPI)


def score_histogram(
    distances: np.ndarray, same: np.ndarray, path: str | os.PathLike, threshold: float | None = None
) -> None:
    """Draw how the squared L2 distances (float [n], 0 to 4) of genuine and impostor pairs (`same`, bool [n]) lie.

    `threshold`, in the same unit, is marked by a line.
    """
    distances, same = np.asarray(distances), np.asarray(same, dtype=bool)
    figure, (axes,) = _figure(1)
    bins = np.linspace(distances.min(), max(distances.max(), distances.min() + 1e-6), 61)
    for label, chosen in (("genuine", same), ("impostor", ~same)):
        axes.hist(distances[chosen], bins, alpha=0.6, label=f"{label} ({chosen.sum():,} pairs)")
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:.2f}")
    axes.set(xlabel="squared L2 distance of unit embeddings", ylabel="pairs", title="Distances of pairs")
    axes.legend(loc="best")
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
