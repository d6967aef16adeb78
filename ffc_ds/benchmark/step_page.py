"""The page and the figure of the comparison by the whole training step."""

import json
from pathlib import Path
from textwrap import fill

from matplotlib.figure import Figure

from ffc_ds.benchmark.pages import how_it_was_made, markdown_table
from ffc_ds.benchmark.step_cell import HEADS
from ffc_ds.evaluation.figures import DPI

COLUMNS = ["head", "ranks", "identities", "images/s", "bare net", "ratio", "bare, compiled", "ratio", "plain softmax"]
COLUMNS += ["ratio", "memory, GiB", "of plain, GiB", "start, s", "of plain, s"]
PARTS = ["probe forward", "gallery", "head", "backward", "optimizer", "class optimizer"]
ABOUT = """A step is everything between a batch that lies on the device and the next: forward of the probe net (and
of the gallery net, if the head has one), loss of the head, backward, reduction over the ranks, optimizer of the net and
of the classes, as `launch/train.py` takes it, with the ds_config for the type (zero2, bf16, fp16.json). Pixels and
labels are random, the embedding has 512 numbers, the settings are the defaults. Nothing is read or decoded.

**bare net** is the same net in a bare loop: weights of the type that it computes in, a softmax over 1,000 classes, SGD;
nothing is checked, scaled or sent, each rank is for itself. **plain softmax** is what one writes without a framework:
the net with a dense softmax (CosFace) over all identities, by autograd and SGD, under torch's autocast where the type
is not float32 and DistributedDataParallel on several ranks. On a GPU a run takes algorithms that give the same when it
is resumed, the other two the fastest ones. Compiled: the nets of all three, and the bare one both ways.

All are built in one process and timed in turn, so a ratio is of one run: images/s of the run over images/s of the
other, the median over the rounds, of the slowest rank. Memory is what the system adds to the process at its peak, state
and step (on a CPU what an earlier one gave back may be used again, and the run comes first). Start is the time from
nothing to the end of the first step, without imports; compiling counts for the run, after which the others find what it
has compiled."""
ABOUT_PARTS = """Parts of the run's step are those of some steps more, on the device's own clock, so on a GPU they
include the time that it waits for the host. Backward includes the reduction over ranks where that goes beside it.
Messages are the time in which any were on their way, as torch's profiler sees them, some of it beside other work."""


def write_step(output: Path) -> None:
    """OUTPUT/step.md and OUTPUT/step.png from the cells in OUTPUT/step."""
    found = [json.loads(path.read_text()) for path in sorted((output / "step").glob("*.json"))]
    found.sort(key=lambda cell: (cell["identities"], cell["ranks"], list(HEADS).index(cell["head"])))
    parts, panels = ["# The whole training step", ABOUT, "![images/s over identities](step.png)"], {}
    for title in dict.fromkeys(map(_title, found)):
        cells = [cell for cell in found if _title(cell) == title]
        panels[title] = measured = [cell for cell in cells if "systems" in cell]
        parts += [f"## {title}", markdown_table(COLUMNS, map(_row, cells))]
        if measured:
            heading = ["head", "ranks", "identities", "step, ms", *PARTS, "messages"]
            parts += [ABOUT_PARTS, markdown_table(heading, map(_parts_row, measured))]
        for versions in {json.dumps(cell["versions"]): cell["versions"] for cell in cells}.values():
            commands = dict.fromkeys(cell["command"] for cell in cells if cell["versions"] == versions)
            parts.append(how_it_was_made(commands, versions, cells[0]["machine"]))
    (output / "step.md").write_text("\n\n".join(parts) + "\n")
    draw_step({title: cells for title, cells in panels.items() if cells}, output / "step.png")


def summary(cell: dict) -> str:
    return "  ".join(each for each in _row(cell) if each)


def _title(cell: dict) -> str:
    overrides = ", ".join(f"{key} {value}" for key, value in cell.get("overrides", {}).items())
    model = cell["model"] + (f" ({overrides})" if overrides else "")
    net = f"{model} at {cell['image_size']} pixels, {cell['batch']} images a rank"
    types = cell["dtype"] + (f" (classes {cell['head_dtype']})" if cell["head_dtype"] != cell["dtype"] else "")
    return f"{cell['machine']}, {types}, {net}{', compiled' * cell['compiled']}"


def _row(cell: dict) -> list[str]:
    about = [cell["head"], str(cell["ranks"]), f"{cell['identities']:,}"]
    if "systems" not in cell:
        reason = cell.get("skipped") or f"failed: {cell['failed'][:200]}"
        return [*about, reason.replace("|", "/"), *[""] * (len(COLUMNS) - 4)]
    systems = cell["systems"]
    run, plain = systems["product"], systems["plain"]
    row = [*about, _speed(run, cell["compiled"])]
    for name in ("bare", "bare_compiled", "plain"):
        row += _held_against(systems.get(name), cell["compiled"] and name != "bare")
    numbers = [("peak_gib", "{:.2f}"), ("start_s", "{:.1f}")]
    return row + [form.format(each[key]) if key in each else "" for key, form in numbers for each in (run, plain)]


def _held_against(system: dict | None, wanted: bool) -> list[str]:
    """Its images/s and the ratio."""
    if system is None:
        return ["", ""]
    if "skipped" in system:
        return [system["skipped"][:200].replace("|", "/"), ""]
    return [_speed(system, wanted), f"{system['ratio']:.2f}"]


def _speed(system: dict, wanted: bool) -> str:
    speed = system["images_per_second"]
    return f"{speed:,.{0 if speed >= 10 else 2}f}{' (not compiled)' * (wanted > system['compiled'])}"


def _parts_row(cell: dict) -> list[str]:
    run = cell["systems"]["product"]
    values = [run["step_ms"], *(run["parts_ms"].get(name) for name in PARTS), cell["messages_ms"]]
    refused = f" ({run['refused']} refused)" * (run["refused"] > 0)
    row = ["" if value is None else f"{value:,.{0 if value >= 100 else 1 if value >= 1 else 2}f}" for value in values]
    return [cell["head"], str(cell["ranks"]), f"{cell['identities']:,}", row[0] + refused, *row[1:]]


def draw_step(panels: dict[str, list[dict]], path: Path) -> None:
    """Images/s over identities, a panel for each machine, type and net, on the fewest ranks measured. Those of one size
    are left out if others have several."""
    several = {title: cells for title, cells in panels.items() if len({cell["identities"] for cell in cells}) > 1}
    panels = several or panels
    figure = Figure(figsize=(9, 0.4 + 4.2 * max(len(panels), 1)), layout="constrained")
    all_axes = figure.subplots(max(len(panels), 1), squeeze=False)[:, 0]
    for (title, cells), axes in zip(panels.items(), all_axes, strict=False):
        ranks = min(cell["ranks"] for cell in cells)
        cells = [cell for cell in cells if cell["ranks"] == ranks]
        for head in dict.fromkeys(cell["head"] for cell in cells):
            line = [(cell["identities"], cell["systems"]["product"]) for cell in cells if cell["head"] == head]
            axes.plot(*_speeds(line), "o-", label=head)
        for name, style in (("bare", "k--"), ("bare_compiled", "k:"), ("plain", "kx-")):
            if line := _beside(cells, name):
                axes.plot(*_speeds(line), style, label=name.replace("_", ", "))
        axes.set(xscale="log", xlabel="identities", ylabel="images/s of the whole step")
        title = f"{title}, {ranks} {'rank' if ranks == 1 else 'ranks'}"
        axes.set_title(fill(title, 100), fontsize="small")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3, which="both")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=DPI)


def _beside(cells: list[dict], name: str) -> list[tuple[int, dict]]:
    """The fastest of those that were measured beside the heads, by identities."""
    fastest = {}
    for cell in sorted(cells, key=lambda cell: cell["systems"].get(name, {}).get("images_per_second", 0)):
        if "images_per_second" in cell["systems"].get(name, {}):
            fastest[cell["identities"]] = cell["systems"][name]
    return sorted(fastest.items())


def _speeds(line) -> tuple[list, list]:
    identities, systems = zip(*line, strict=True)
    return list(identities), [system["images_per_second"] for system in systems]
