"""Figures are drawn from any sensible result, at 150 dots per inch, and show what they are given."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ffc_ds.evaluation.figures import learning_curve, pair_pictures, roc_curves, roc_figure, score_histograms
from ffc_ds.evaluation.scores import BINS, histogram
from ffc_ds.evaluation.verification import verify_pairs


@pytest.fixture
def drawn(monkeypatch):
    """The figures saved during a test."""
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))[1])
    return figures


def embedded_pairs(noise, n=2000):
    rng = np.random.default_rng(0)
    same = np.arange(n) % 2 == 0
    first = rng.standard_normal((n, 32))
    return first, np.where(same[:, None], first, 0) + noise * rng.standard_normal((n, 32)), same


def assert_png(path, size):
    with Image.open(path) as image:
        assert image.format == "PNG" and image.size == size
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert len(image.convert("L").getcolors()) > 10


def test_roc_figure_shows_each_curve_over_a_log_axis(tmp_path, drawn):
    results = {"untrained": verify_pairs(*embedded_pairs(5)), "trained": verify_pairs(*embedded_pairs(1.5))}
    roc_figure(results, tmp_path / "roc.png")
    assert_png(tmp_path / "roc.png", (1050, 675))
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == "log" and axes.get_xlim() == (1e-3, 1)
    for line, (label, result) in zip(axes.lines, results.items(), strict=True):
        assert line.get_label().startswith(label)
        np.testing.assert_array_equal(line.get_xydata().T, [result.fpr, result.tpr])
    with pytest.raises(ValueError, match="at least one result"):
        roc_figure({}, tmp_path / "none.png")


def test_a_curve_that_never_leaves_zero_and_one_that_ends_early(tmp_path, drawn):
    curves = {
        "perfect": (np.array([0.0, 0.0]), np.array([0.0, 1.0])),
        "part": (np.array([0, 1e-6]), np.array([0.2, 0.5])),
    }
    roc_curves(curves, tmp_path / "roc.png")
    assert drawn[0].axes[0].get_xlim() == (1e-6, 1)
    assert [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()] == list(curves)


def test_histograms_show_the_share_of_every_kind_in_a_panel_a_protocol(tmp_path, drawn):
    rng = np.random.default_rng(0)
    kinds = {"genuine": histogram(rng.uniform(0, 1, 100)), "impostor": histogram(rng.uniform(-1, 0.5, 10_000))}
    score_histograms({"LFW": kinds, "IJB": kinds | {"none": 0 * kinds["genuine"]}}, tmp_path / "scores.png")
    assert_png(tmp_path / "scores.png", (1050, 1125))
    above, below = drawn[0].axes
    assert (above.get_title(), below.get_title()) == ("LFW", "IJB")
    for steps, count in zip(above.patches, kinds.values(), strict=True):
        np.testing.assert_allclose(steps.get_data().values, count / count.sum())
        np.testing.assert_array_equal(steps.get_data().edges, BINS)
    assert [text.get_text() for text in below.get_legend().get_texts()] == [
        "genuine (100)",
        "impostor (10,000)",
        "none (0)",
    ]


def test_pictures_of_pairs_stand_in_rows_above_their_scores(tmp_path, drawn):
    pictures = np.random.default_rng(0).integers(256, size=(3, 8, 16, 3), dtype=np.uint8)
    rows = {"genuine": [(pictures[0], -0.25), (pictures[1], 0.5)], "impostor": [(pictures[2], 0.75)], "nobody": []}
    pair_pictures(rows, tmp_path / "errors.png")
    strips = drawn[0].subfigs
    assert [strip.get_suptitle() for strip in strips] == list(rows)
    for strip, pairs in zip(strips, rows.values(), strict=True):
        shown = [axes for axes in strip.axes if axes.images]
        assert [axes.get_title() for axes in shown] == [f"{score:.3f}" for _, score in pairs]
        for axes, (picture, _) in zip(shown, pairs, strict=True):
            np.testing.assert_array_equal(axes.images[0].get_array(), picture)


def test_figures_of_a_collapsed_network(tmp_path, drawn):
    same = np.arange(10) < 5
    roc_figure({"collapsed": verify_pairs(np.ones((10, 2)), np.ones((10, 2)), same)}, tmp_path / "roc.png")
    assert drawn[0].axes[0].get_xlim() == (0.1, 1)


def test_learning_curve_takes_sparse_rows(tmp_path, drawn):
    steps = np.arange(0, 2000, 10)
    rows = [{"step": int(step), "loss": 20 * 0.999**step, "fresh": 0.1, "note": "text"} for step in steps]
    rows += [{"step": int(step), "eval/accuracy": 1 - 0.4 * 0.998**step, "eval/auc": None} for step in steps[::20]]
    rows += [{"step": 1000, "loss": float("nan")}, {"step": 5, "eval/auc": 0.7}, {"epoch": 1, "loss": 3}]
    curves = {"eval/accuracy": "accuracy", "eval/auc": "AUC"}
    learning_curve(rows, curves, tmp_path / "both.png", losses={"loss": "loss", "fresh": "fresh-id loss"})
    assert_png(tmp_path / "both.png", (1050, 1125))
    above, below = drawn[0].axes
    assert [len(line.get_xdata()) for line in (*above.lines, *below.lines)] == [10, 1, 200, 200]
    assert [text.get_text() for text in above.get_legend().get_texts()] == ["accuracy", "AUC"]

    learning_curve(rows, {"eval/accuracy": "accuracy"}, tmp_path / "one.png")
    assert_png(tmp_path / "one.png", (1050, 675))
    with pytest.raises(ValueError, match="no row has a value for 'missing'"):
        learning_curve(rows, {"missing": "nothing"}, tmp_path / "none.png")
