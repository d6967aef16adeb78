"""A race of heads: what accuracy each has reached after so many seconds, and after so many images."""

import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ffc_ds.benchmark.accuracy import check_alike, read_recipe
from ffc_ds.benchmark.pages import how_it_was_made, markdown_table, this_command
from ffc_ds.benchmark.training_cell import train_cell
from ffc_ds.config.paths import find_file
from ffc_ds.evaluation.figures import DPI
from ffc_ds.progress import progress

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

    What a head gave lies in OUTPUT/RECIPE/CELL.json as soon as it ends, and an interrupted run goes on from its last
    checkpoint: the command can be stopped and started at will. It writes OUTPUT/RECIPE.md and a figure.

    Args:
        recipe: as for `accuracy`, with one experiment; its first line is the head that the others are held against.
        settings: further ones for all runs, as data.train=PATH; they do not tell cells apart.
        ranks: processes of each run.
        output: folder of the results.
        work: folder of the runs.

    Raises:
        UserError: a recipe of another form or, with the end of its log, a run that failed.
    """
    every, (experiment, *_) = read_recipe(Path(find_file(recipe)))
    name = Path(recipe).stem
    results = Path(output) / name
    results.mkdir(parents=True, exist_ok=True)
    about, found = {"every": every, "ranks": ranks, "command": this_command()}, {}
    for label, (cell, *_) in progress(experiment.lines.items(), desc="race", unit="heads", total=len(experiment.lines)):
        path = results / f"{cell.name}.json"
        if path.exists():
            found[label] = json.loads(path.read_text())
            check_alike([*found.values(), about], results)
        else:
            found[label] = about | train_cell(cell, every, Path(work) / name / cell.name, ranks, settings)
            check_alike(list(found.values()), results)
            aside = path.with_suffix(".unfinished")
            aside.write_text(json.dumps(found[label], indent=1))
            aside.rename(path)
        write_race(name, experiment.title, found, Path(output))


def write_race(name: str, title: str, found: dict[str, dict], output: Path) -> None:
    """OUTPUT/NAME.md and NAME.png of the heads that are there, by label."""
    first, *_ = found
    last = list(found.values())[-1]
    heading = [column.format(first=first) for column in COLUMNS]
    rows = [[label, *_row(each, found[first])] for label, each in found.items()]
    draw_race(found, output / f"{name}.png")
    about = (
        f"{last['identities']:,} identities, {last['images']:,} images, {last['steps']:,} steps, {last['ranks']} "
        f"ranks, one seed. Minutes are those of training steps alone. A head is as good as {first} when it is within "
        f"{100 * LEVEL:g} points of what {first} has at its end; the speed-up is the time that {first} itself takes to "
        "that level, over the head's."
    )
    made = how_it_was_made(dict.fromkeys(each["command"] for each in found.values()), last["versions"])
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
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = (("minutes of training", 1, 60), ("million images seen", 0, 1e6))
    for axes, (what, column, unit) in zip(figure.subplots(1, 2, sharey=True), panels, strict=True):
        for label, each in found.items():
            curve = np.array(each["curve"])
            axes.plot(curve[:, column] / unit, 100 * curve[:, 2], label=label, marker="o", markersize=3)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_xlabel(what)
    figure.axes[0].set_ylabel("verification accuracy, %")
    figure.axes[0].legend(loc="lower right")
    figure.savefig(path, dpi=DPI)
