"""What an evaluation leaves: numbers, tables, figures."""

import json
from dataclasses import asdict
from pathlib import Path

from ffc_ds.evaluation.figures import pair_pictures, roc_curves, score_histograms
from ffc_ds.evaluation.protocols import Result
from ffc_ds.evaluation.settings import EvaluationConfig


def write_results(config: EvaluationConfig, results: list[Result], folder: Path) -> None:
    """Write results.json, table.md and the figures."""
    from ffc_ds.training.report import versions  # imports DeepSpeed

    found = [{"protocol": each.protocol, "name": each.name} | each.numbers for each in results]
    content = {"results": found, "versions": versions(), "config": asdict(config)}
    (folder / "results.json").write_text(json.dumps(content, indent=1))
    (folder / "table.md").write_text(table(results))
    ends = _ends({each.name for each in results})
    labelled = [(f"{ends[each.name]}, {each.protocol}", each) for each in results]
    if curves := {label: each.roc for label, each in labelled if each.roc is not None}:
        roc_curves(curves, folder / "roc.png")
    if panels := {label: each.histogram for label, each in labelled if each.histogram}:
        score_histograms(panels, folder / "histogram.png")
    if rows := {f"{label}: {kind}": pairs for label, each in labelled for kind, pairs in each.hardest.items()}:
        pair_pictures(rows, folder / "errors.png")


def _ends(names: set[str]) -> dict[str, str]:
    """What figures call each name: the end of a long path says more than its beginning, and tells it from others."""
    ends = {}
    for name in names:
        others, length = names - {name}, 40
        while any(other.endswith(name[-length:]) for other in others) and length < len(name):
            length += 1
        ends[name] = name[-length:]
    return ends


def table(results: list[Result]) -> str:
    """A Markdown table for each kind of protocol."""
    parts = []
    for protocol in dict.fromkeys(each.protocol for each in results):
        rows = {each.name: _cells(each.numbers) for each in results if each.protocol == protocol}
        columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
        lines = [["set", *columns], ["---"] * (len(columns) + 1)]
        lines += [[name, *(cells.get(column, "") for column in columns)] for name, cells in rows.items()]
        parts.append(f"## {protocol}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(parts)


def _cells(numbers: dict) -> dict[str, str]:
    """Column -> text of every number; those of a dictionary each have their column."""
    cells = {}
    for key, value in numbers.items():
        words = key.replace("_", " ").replace("tar at far", "TAR at FAR").replace("tpir at fpir", "TPIR at FPIR")
        inner = {f"{words} {k}": v for k, v in value.items()} if isinstance(value, dict) else {words: value}
        cells |= {column: _text(number) for column, number in inner.items()}
    return cells


def _text(number: float | None) -> str:
    if number is None:
        return "not resolvable"
    if isinstance(number, int):
        return f"{number:,}"
    return f"{number:.4f}" if number == 0 or abs(number) >= 5e-5 else f"{number:.1e}"
