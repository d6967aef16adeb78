"""Comparison of systems by the accuracy that the same budget of training reaches, over several seeds."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from jsonargparse.typing import PositiveInt

from ffc_ds.benchmark.curves import draw_curves
from ffc_ds.benchmark.dot_chart import dot_chart
from ffc_ds.benchmark.pages import how_it_was_made, markdown_table, this_command, this_machine
from ffc_ds.benchmark.training_cell import Cell, train_cell
from ffc_ds.config.documents import read_yaml
from ffc_ds.config.paths import find_file
from ffc_ds.errors import UserError
from ffc_ds.files import write_whole
from ffc_ds.progress import progress

DATA = ("data.train", "data.min_images")


@dataclass(frozen=True)
class Experiment:
    """A table: its title and the cells of each line, by label."""

    title: str
    lines: dict[str, list[Cell]]


def run_accuracy(
    recipe: str = "launch/comparisons/accuracy_generated.yaml",
    settings: tuple[str, ...] = (),
    ranks: int = 2,
    at_once: PositiveInt = 1,
    output: str = "docs/results",
    work: str = "runs/accuracy",
) -> None:
    """Train every system with the same net, data, images and seeds, and compare what they learn.

    What a cell of the tables found lies in OUTPUT/RECIPE/CELL.json as soon as it ends, and is not run again: the
    command can be stopped and started at will. It writes OUTPUT/RECIPE.md and figures.

    Args:
        recipe: `every`, settings of all cells; `experiments`, by title `seeds` and `cells`, by label their settings.
        settings: further ones for all runs, as data.train=PATH; they do not tell cells apart.
        ranks: processes of each run.
        at_once: runs side by side, for a GPU that none of them fills.
        output: folder of the results.
        work: folder of the runs.

    Raises:
        UserError: a recipe of another form or, with the end of its log, a run that failed.
    """
    every, experiments = read_recipe(Path(find_file(recipe)))
    name = Path(recipe).stem
    # seed by seed within a table, so that it is there early, with few seeds at first
    by_seed = (zip_longest(*each.lines.values()) for each in experiments)
    cells = [cell for cell in dict.fromkeys(cell for table in by_seed for line in table for cell in line) if cell]

    def write():
        write_tables(name, experiments, Path(output))

    train_cells(cells, every, Path(output) / name, Path(work) / name, ranks, settings, write, at_once)


def train_cells(
    cells: list[Cell],
    every: dict,
    results: Path,
    work: Path,
    ranks: int,
    settings: tuple[str, ...],
    write: Callable[[], None],
    at_once: int = 1,
) -> None:
    """Train those of which nothing lies in `results` yet, some `at_once`, and `write()` after each and at the end.
    When one fails no other one is begun, and those under way are kept, before its UserError is raised."""
    results.mkdir(parents=True, exist_ok=True)
    there = {cell: results / f"{cell.name}.json" for cell in cells if (results / f"{cell.name}.json").exists()}
    kept = [json.loads(path.read_text()) for path in there.values()]
    about = {"every": every, "ranks": ranks, "command": this_command(), "machine": this_machine()}
    _check_alike([*kept, about], results)
    missing = [cell for cell in cells if cell not in there]
    lock = threading.Lock()

    def train_and_keep(cell: Cell) -> None:
        found = about | train_cell(cell, every, work / cell.name, ranks, settings)
        with lock:
            kept.append(found)
            _check_alike(kept, results)
            write_whole(results / f"{cell.name}.json", json.dumps(found, indent=1))
            write()

    with ThreadPoolExecutor(at_once) as pool:
        ended = as_completed([pool.submit(train_and_keep, cell) for cell in missing])
        try:
            for run in progress(ended, desc="compare", unit="cells", initial=len(there), total=len(cells)):
                run.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    write()


def _check_alike(found: list[dict], folder: Path) -> None:
    """Raise UserError unless the cells, as far as they say, are of one recipe and number of ranks, and those that name
    the same data of the same data and budget."""
    for key in ("every", "ranks", "identities", "images", "steps"):
        first = {}
        for each in found:
            own = each.get("settings", {})
            data = None if key in ("every", "ranks") else tuple(own.get(name) for name in DATA)
            if key in each and first.setdefault(data, each[key]) != each[key]:
                raise UserError(
                    f"{folder} holds cells that cannot be compared with this one: {key} is {first[data]} there and "
                    f"{each[key]} here. Choose another --output, or repeat the settings that they were made with."
                )


def read_recipe(path: Path) -> tuple[dict, list[Experiment]]:
    """Settings of all cells and the experiments, in order. Raises UserError."""
    recipe = read_yaml(path)
    try:
        experiments = [
            Experiment(title, _lines(each["seeds"], each["cells"])) for title, each in recipe["experiments"].items()
        ]
        return dict(recipe["every"]), experiments
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is no recipe of a comparison ({type(error).__name__}: {error}): it needs `every`, a mapping of "
            "settings, and `experiments`, by title with `seeds`, a number, and `cells`, by label their settings."
        ) from None


def _lines(seeds: int, cells: dict[str, dict]) -> dict[str, list[Cell]]:
    settings = {label: json.dumps(own, sort_keys=True) for label, own in cells.items()}
    return {label: [Cell(own, seed) for seed in range(seeds)] for label, own in settings.items()}


def write_tables(name: str, experiments: list[Experiment], output: Path) -> None:
    """OUTPUT/NAME.md and NAME.png from the cells that are there, and NAME_curves.png if some were verified on their
    way."""
    parts, panels, curves, commands, last, told = [], {}, {}, {}, None, None
    for experiment in experiments:
        rows, panel, ways, cells_there = [], {}, {}, []
        for label, cells in experiment.lines.items():
            paths = [output / name / f"{cell.name}.json" for cell in cells]
            found = [json.loads(path.read_text()) for path in paths if path.exists()]
            if found:
                last, cells_there = found[-1], cells_there + found
                commands |= dict.fromkeys(each["command"] for each in found)
                rows.append([label, *_row(found)])
                panel[label] = [100 * each["trained"]["accuracy"] for each in found]
                ways[label] = np.array(found[0]["curve"])[:, [0, 2]]  # of the first seed
        if rows and len(rows) >= min(2, len(experiment.lines)):  # until then there is nothing to compare
            panels[experiment.title] = panel
            if max(map(len, ways.values())) > 2:  # verified on the way
                curves[experiment.title] = ways
            heading = ["", "accuracy, %", "TAR at FAR 0.01", "AUC", "seeds"]
            data = f"{_how_many(cells_there)}, {last['ranks']} rank{'s' * (last['ranks'] > 1)}"
            data = f"{data}, on {' and '.join(sorted({each['machine'] for each in cells_there}))}.\n\n"
            said, told = ("" if data == told else data), data
            parts.append(f"## {experiment.title}\n\n{said}{markdown_table(heading, rows)}")
    if not parts:
        return
    dot_chart(panels, "accuracy, %", output / f"{name}.png")
    figures = [f"![accuracy]({name}.png)"]
    if curves:
        figures.append("On the way, of the first seed:")
        draw_curves(curves, ["images seen"] * len(curves), output / f"{name}_curves.png")
        figures.append(f"![accuracy over images]({name}_curves.png)")
    about = "Accuracy is the mean over seeds of 10-fold pair verification, and its standard deviation over seeds."
    made = how_it_was_made(commands, last["versions"], last["machine"])
    text = "\n\n".join([f"# Comparison by accuracy: {name}", about, *figures, *parts, made])
    (output / f"{name}.md").write_text(text + "\n")


def _how_many(found: list[dict]) -> str:
    parts = []
    for what in ("identities", "images", "steps"):
        least, most = (choose(each[what] for each in found) for choose in (min, max))
        parts.append(f"{least:,} {what}" if least == most else f"{least:,} to {most:,} {what}")
    return ", ".join(parts)


def _row(found: list[dict]) -> list[str]:
    trained = [each["trained"] for each in found]
    accuracy = [100 * each["accuracy"] for each in trained]
    spread = f" ± {np.std(accuracy, ddof=1):.2f}" if len(found) > 1 else ""
    return [
        f"{np.mean(accuracy):.2f}{spread}",
        _mean([each["tar_at_far"]["0.01"] for each in trained], ".3f"),
        _mean([each["auc"] for each in trained], ".4f"),
        str(len(found)),
    ]


def _mean(values: list[float | None], form: str) -> str:
    return "too few pairs" if None in values else format(np.mean(values), form)
