"""Comparison of heads by cost: step time, its ratio to a floor of products and moved bytes, memory, over identities."""

import json
from itertools import product
from pathlib import Path

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt, restricted_number_type
from matplotlib.figure import Figure

from ffc_ds.benchmark.head_cell import Cell
from ffc_ds.benchmark.head_timing import measure_in_processes
from ffc_ds.benchmark.pages import how_it_was_made, markdown_table, this_command
from ffc_ds.errors import UserError
from ffc_ds.evaluation.figures import DPI

COLUMNS = ["head", "ranks", "identities", "columns", "step, ms", "an image, ms"]
COLUMNS += ["products, ms", "x products", "moving, ms", "x floor", "peak, GiB", "of the head, GiB"]
HEADS = ("plain", "full_fc", "partial_fc", "virtual_fc", "ffc", "ffc_lru")
TRAINED = ("full_fc", "partial_fc", "virtual_fc")  # whose class weights have an optimizer of ours
ABOUT = """One step is the loss, its gradient by the features, and the update of the class state, on random unit
features of 512 numbers and random labels: 64 rows a rank (`ffc_lru`, which is `ffc` with `head.pool lru`: two views of
128, K = 3, the pool full).

*Products* are the matrix products that the same step cannot do without, measured in turn with it; the *floor* is these
and the time to move what must be read and written beside them, at the rate of a large copy, measured in turn too. The
products read the class weights and write logits and gradient within their own time. Beside them are counted, in rows of
512 numbers: `plain`, `full_fc`, `virtual_fc` 4 a column (weights and momentum read and written by the update),
`partial_fc` 6 (rows gathered: read and written; then the same update), `ffc` 2 a column (gathered) and 2 a row of the
batch (its center read and written), `ffc_lru` 4 a row of the batch (its feature goes into the pool in both passes).
Messages between ranks are not counted. Cells with "-" were measured without the copy.

Times are medians over the repetitions, of the slowest rank, and the ratio is the median of theirs. Peak memory is that
of one rank in its first steps; of the head is what the process did not hold before there was a head. `plain` is a dense
softmax by autograd. A step takes some milliseconds whatever it compares with (more on several ranks, which wait for
messages), so ratios of a few thousand columns say little. Products here are done at once, heads go block by block,
which the cache rewards: with many columns the ratio can be below 1. Where others use the machine too, the products show
how fast it was at the time."""

Count = restricted_number_type("Count", float, (">=", 1), docstring="A number, written 1e6 or 1000000.")


def run_heads(
    sizes: tuple[Count, ...] = (1e4, 1e5, 1e6),
    ranks: tuple[PositiveInt, ...] = (1, 2),
    heads: tuple[str, ...] = HEADS,
    pools: tuple[PositiveFloat, ...] = (0.001, 0.01, 0.1),
    dtype: str = "float32",
    device: str = "auto",
    compile: str = "off",
    repeats: PositiveInt = 15,
    output: str = "docs/results",
    again: bool = False,
) -> None:
    """Measure step time, floor and memory of every head, in processes of their own.

    What a cell gave lies in OUTPUT/heads as soon as it ends, and a cell that is there is not measured again, so the
    command can be stopped and started at will. OUTPUT/heads.md and heads_cost.png show all cells of that folder.
    Raises UserError for what is not there: a head, a type, a device.

    Args:
        sizes: Numbers of identities.
        ranks: Numbers of processes; on GPUs at most as many as there are, on a CPU they share its cores.
        heads: Some of plain, full_fc, partial_fc, virtual_fc, ffc, and ffc_lru (head.pool lru); plain is measured on
            one rank only.
        pools: Pool sizes of ffc: up to 1 a share of the identities, above it a number of slots.
        dtype: Type of the class state, and of the products with it where the device is faster in it: float32 or
            bfloat16.
        device: cpu, cuda, or auto for a GPU if there is one.
        compile: on measures heads that train class weights with their update compiled, as train.compile has it; off.
        repeats: How often each step is timed.
        output: Folder of the results.
        again: Measure cells anew that are there.
    """
    from ffc_ds.training.report import versions  # imports DeepSpeed

    device = _check(heads, dtype, device, compile)
    folder = Path(output) / "heads"
    folder.mkdir(parents=True, exist_ok=True)
    about = {"command": this_command(), "versions": versions()}
    for cell in _cells(sizes, ranks, heads, pools, dtype, device, compile == "on"):
        path = folder / f"{cell.name}.json"
        if again or not path.exists() or "skipped" in json.loads(path.read_text()):
            measure_in_processes(cell, repeats, path, about)
            print("  ".join(_row(json.loads(path.read_text()))), flush=True)
    write_heads(Path(output))


def _check(heads, dtype, device, compile) -> str:
    """The device that is meant. Raises UserError."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    choices = [(head, "--heads", HEADS) for head in heads]
    choices += [(dtype, "--dtype", ("float32", "bfloat16")), (device, "--device", ("auto", "cpu", "cuda"))]
    choices += [(compile, "--compile", ("on", "off"))]
    for chosen, option, known in choices:
        if chosen not in known:
            raise UserError(f"{option} {chosen}: choose from {', '.join(known)}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here. Use --device cpu.")
    return device


def _cells(sizes, ranks, heads, pools, dtype, device, compiled) -> list[Cell]:
    """Small ones first."""
    cells = []
    for size, world, head in product(sorted(sizes), ranks, heads):
        if head == "plain" and world > 1 or device == "cuda" and world > torch.cuda.device_count():
            continue
        fitting = [pool for pool in pools if pool <= size] if head.startswith("ffc") else [0.0]
        how = compiled and head in TRAINED
        cells += [Cell(head, round(size), world, dtype, device, pool, how) for pool in fitting]
    return cells


def write_heads(output: Path) -> None:
    """OUTPUT/heads.md and OUTPUT/heads_cost.png from the cells in OUTPUT/heads."""
    found = [json.loads(path.read_text()) for path in sorted((output / "heads").glob("*.json"))]
    found.sort(key=lambda cell: (cell["identities"], cell["ranks"], HEADS.index(cell["head"]), cell["pool_size"]))
    parts = ["# Cost of the heads", ABOUT, "![cost against identities](heads_cost.png)"]
    panels = {}
    for machine, dtype in dict.fromkeys((cell["machine"], cell["dtype"]) for cell in found):
        cells = [cell for cell in found if (cell["machine"], cell["dtype"]) == (machine, dtype)]
        panels[f"{machine}, {dtype}"] = [cell for cell in cells if "skipped" not in cell]
        parts += [f"## {machine}, {dtype}", markdown_table(COLUMNS, map(_row, cells))]
        parts += _rates(cells)
        for versions in {json.dumps(cell["versions"]): cell["versions"] for cell in cells}.values():
            commands = dict.fromkeys(cell["command"] for cell in cells if cell["versions"] == versions)
            parts.append(how_it_was_made(commands, versions, machine))
    (output / "heads.md").write_text("\n\n".join(parts) + "\n")
    draw_cost({title: cells for title, cells in panels.items() if cells}, output / "heads_cost.png")


def _row(cell: dict) -> list[str]:
    about = [_system(cell), str(cell["ranks"]), f"{cell['identities']:,}"]
    if "skipped" in cell:
        return [*about, "", cell["skipped"], *[""] * (len(COLUMNS) - 5)]
    times = ["step_ms", "image_ms", "products_ms", "products_ratio", "moving_ms", "ratio", "peak_gib", "own_gib"]
    cell = cell | {"image_ms": cell["step_ms"] / cell["images"]}
    return [*about, f"{cell['columns']:,}", *(_number(key, cell.get(key)) for key in times)]


def _number(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if not key.endswith("_ms") else f"{value:,.{0 if value >= 100 else 1 if value >= 1 else 2}f}"


def _rates(cells: list[dict]) -> list[str]:
    """A line on what the machine can do, of the cell with the largest products."""
    measured = [cell for cell in cells if "products_tflops" in cell]
    if not measured:
        return []
    ranks = min(cell["ranks"] for cell in measured)
    most = max((cell for cell in measured if cell["ranks"] == ranks), key=lambda cell: cell["products_ms"])
    rates = f"products at {most['products_tflops']:,.3g} TFLOP/s, copies at {most['copy_gb_s']:,.3g} GB/s"
    return [f"A rank of {ranks} here: {rates} (read and written), as {_system(most)} at {most['identities']:,} has it."]


def _system(cell: dict) -> str:
    head, pool = cell["head"], cell["pool_size"]
    if not head.startswith("ffc"):
        return f"{head}, compiled" if cell.get("compiled") else head
    return f"{head}, pool {100 * pool:g} %" if pool <= 1 else f"{head}, pool {pool:,.0f}"


def draw_cost(panels: dict[str, list[dict]], path: Path) -> None:
    """Draw step time and memory over identities, a row of panels for each machine, on the fewest ranks measured."""
    figure = Figure(figsize=(11, 0.6 + 3.6 * max(len(panels), 1)), layout="constrained")
    all_axes = figure.subplots(len(panels), 2, squeeze=False)
    for (title, cells), (time, memory) in zip(panels.items(), all_axes, strict=True):
        ranks = min(cell["ranks"] for cell in cells)
        cells = sorted(cells, key=lambda cell: (HEADS.index(cell["head"]), cell["pool_size"], cell["identities"]))
        for system in dict.fromkeys(map(_system, cells)):
            line = [cell for cell in cells if (_system(cell), cell["ranks"]) == (system, ranks)]
            identities = [cell["identities"] for cell in line]
            time.plot(identities, [cell["step_ms"] / cell["images"] for cell in line], "o-", label=system)
            memory.plot(identities, [cell["own_gib"] for cell in line], "o-", label=system)
        time.set(
            ylabel="class side of a step, ms an image", title=f"{title}, {ranks} {'rank' if ranks == 1 else 'ranks'}"
        )
        memory.set(ylabel="memory of the head on a rank, GiB")
        memory.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    for axes in all_axes.flat:
        axes.set(xscale="log", yscale="log", xlabel="identities")
        axes.grid(alpha=0.3, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=DPI)
