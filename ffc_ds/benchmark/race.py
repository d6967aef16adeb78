"""A race of heads: what accuracy each has reached after so many seconds, and after so many images."""

import json
from pathlib import Path

import numpy as np

from ffc_ds.benchmark.accuracy import read_recipe, train_cells
from ffc_ds.benchmark.curves import draw_curves
from ffc_ds.benchmark.pages import how_it_was_made, markdown_table
from ffc_ds.config.paths import find_file

COLUMNS = ["", "accuracy at the end, %", "images/s", "training, min", "as good as {first} after, min", "speed-up"]
COLUMNS += ["memory a rank, GiB"]
LEVEL = 0.005  # as good as the first: its last accuracy less this


def run_race(
    recipe: str = "launch/comparisons/race.yaml",
    settings: tuple[str, ...] = (),
    ranks: int = 2,
    output: str = "docs/results",
    work: str = "runs/race",
) -> None:
    """Train heads one after another on the same images, and draw their accuracy against time and images.

    It is kept, and goes on, as `accuracy` does, an interrupted run from its last checkpoint.

    Args:
        recipe: as for accuracy, with one experiment; its first line is the head that the others are held against.
        settings: further ones for all runs.
        ranks: processes of each run.
        output: folder of the results: OUTPUT/RECIPE.md, a figure, and what each head gave.
        work: folder of the runs.

    Raises:
        UserError: as for accuracy.
    """
    every, (experiment, *_) = read_recipe(Path(find_file(recipe)))
    name = Path(recipe).stem
    results, cells = Path(output) / name, {label: cell for label, (cell, *_) in experiment.lines.items()}

    def write():
        paths = {label: results / f"{cell.name}.json" for label, cell in cells.items()}
        found = {label: json.loads(path.read_text()) for label, path in paths.items() if path.exists()}
        write_race(name, experiment.title, found, Path(output))

    train_cells(list(cells.values()), every, results, Path(work) / name, ranks, settings, write)


def write_race(name: str, title: str, found: dict[str, dict], output: Path) -> None:
    """OUTPUT/NAME.md and NAME.png of the heads that are there, by label."""
    first, *_ = found
    last = list(found.values())[-1]
    heading = [column.format(first=first) for column in COLUMNS]
    rows = [[label, *_row(each, found[first])] for label, each in found.items()]
    draw_race(found, output / f"{name}.png")
    about = (
        f"{last['identities']:,} identities, {last['images']:,} images, {last['steps']:,} steps, {last['ranks']} "
        f"ranks, one seed. Minutes are those of training steps and of the pass before them that gives `ffc` its first "
        f"centers. A head is as good as {first} when it is within {100 * LEVEL:g} points of what {first} has at its "
        f"end; the speed-up is the time that {first} itself takes to that level, over the head's."
    )
    made = how_it_was_made(dict.fromkeys(each["command"] for each in found.values()), last["versions"], last["machine"])
    parts = [f"# {title}", about, f"![accuracy over time and images]({name}.png)", markdown_table(heading, rows), made]
    (output / f"{name}.md").write_text("\n\n".join(parts) + "\n")


def _row(each: dict, first: dict) -> list[str]:
    level = first["trained"]["accuracy"] - LEVEL
    reached, of_first = time_to(each["curve"], level), time_to(first["curve"], level)
    return [
        f"{100 * each['trained']['accuracy']:.2f}",
        f"{each['images_per_second']:,.0f}",
        f"{each['curve'][-1][1] / 60:.1f}",
        "never" if reached is None else f"{reached / 60:.1f}",
        f"{of_first / reached:.2f}" if reached else "",
        f"{each['memory_gib']:.2f}",
    ]


def time_to(curve: list[list[float]], level: float) -> float | None:
    """Seconds until a curve of [images, seconds, accuracy] is at `level`, on a straight line from the verification
    before; None if it never is."""
    _, seconds, accuracy = np.array(curve).T
    above = np.flatnonzero(accuracy >= level)
    if not above.size:
        return None
    place = above[0]
    if place == 0:
        return float(seconds[0])
    part = slice(place - 1, place + 1)
    return float(np.interp(level, accuracy[part], seconds[part]))


def draw_race(found: dict[str, dict], path: Path) -> None:
    """Two panels, a curve a head in each: over minutes, and over images."""
    curves = {label: np.array(each["curve"]) / [1e6, 60, 1] for label, each in found.items()}
    panels = {
        title: {label: curve[:, [column, 2]] for label, curve in curves.items()}
        for title, column in (("over time", 1), ("over images", 0))
    }
    draw_curves(panels, ["minutes of training", "million images seen"], path)
