"""What an evaluation writes of its results."""

import numpy as np
from matplotlib.figure import Figure

from ffc_ds.evaluation.protocols import Result
from ffc_ds.evaluation.results import write_results
from ffc_ds.evaluation.scores import histogram
from ffc_ds.evaluation.settings import EvaluationConfig


def test_lists_whose_paths_end_alike_each_have_their_curve_panel_and_pictures(tmp_path, monkeypatch):
    end = "a_folder_of_many_letters/another_one/pairs.txt"
    names = [f"sets/{each}/{end}" for each in ("first", "last")] + [f"else/{'x' * 40}.txt", "s.txt", f"sets/{end}"]
    curve, counts = (np.array([0, 0.5, 1]), np.array([0, 0.9, 1])), {"genuine": histogram(np.ones(3))}
    hardest = {"least alike": [(np.zeros((112, 224, 3), np.uint8), 0.1)]}
    results = [Result("verification", name, {"auc": 0.5}, curve, counts, hardest) for name in names]
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: drawn.append(self))
    write_results(EvaluationConfig("model", "out"), results, tmp_path)
    labels = [f"{each}, verification" for each in (f"rst/{end}", f"ast/{end}", f"{'x' * 36}.txt", "s.txt", f"s/{end}")]
    assert [line.get_label() for line in drawn[0].axes[0].lines] == labels
    assert [axes.get_title() for axes in drawn[1].axes] == labels
    assert [strip.get_suptitle() for strip in drawn[2].subfigs] == [f"{label}: least alike" for label in labels]
