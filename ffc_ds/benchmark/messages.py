"""What the class side sends: collectives of a step of each head, counted as they are called, and their bytes."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from jsonargparse.typing import PositiveInt
from torch import multiprocessing as mp

from ffc_ds import distributed
from ffc_ds.benchmark.head_cell import Cell, batch_of, head_of, refuse
from ffc_ds.benchmark.head_timing import step
from ffc_ds.benchmark.heads import HEADS, Count
from ffc_ds.benchmark.pages import how_it_was_made, markdown_table, this_command
from ffc_ds.errors import UserError

KINDS = ("all_gather", "all_reduce")
COLUMNS = ["head", "ranks", "identities", "all-gathers", "their KiB", "all-reduces", "their KiB"]
CPU = torch.device("cpu")
ABOUT = """Collectives of one step of the class side (loss, backward to the features, update of the class state),
counted as they are called, without those of the backbone's gradient, which DeepSpeed sends. 64 rows a rank of 512
numbers (`ffc_lru`: two views of 128). KiB are those that a rank puts in: an all-gather brings it that much from each
other rank. Features go there once, their gradient comes back, and the rest is what joins the softmax: a few numbers a
row. None of it grows with the number of identities. Messages do not depend on the machine, so there is no time here."""


def run_messages(
    sizes: tuple[Count, ...] = (1e4, 1e5),
    ranks: tuple[PositiveInt, ...] = (2, 3),
    output: str = "docs/results",
) -> None:
    """Count the collectives of a step of every head, and their bytes.

    Args:
        sizes: Numbers of identities.
        ranks: Numbers of processes, on the CPU.
        output: Folder of the result: messages.md.
    """
    from ffc_ds.training.report import versions  # imports DeepSpeed

    rows = []
    for world in ranks:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_on_rank, (world, [round(size) for size in sizes], Path(folder)), nprocs=world)
            rows += json.loads(Path(folder, "found.json").read_text())
    table = markdown_table(COLUMNS, rows)
    print(table)
    parts = ["# Messages of the heads", ABOUT, table, how_it_was_made([this_command()], versions())]
    Path(output).mkdir(parents=True, exist_ok=True)
    Path(output, "messages.md").write_text("\n\n".join(parts) + "\n")


def _on_rank(rank: int, world: int, sizes: list[int], folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    heads = [head for head in HEADS if head != "plain"] + ["metric"]
    cells = [Cell(head, size, world, "float32", "cpu", 0.1) for size in sizes for head in heads]
    rows = [_row(cell) for cell in cells]
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(rows))
    dist.barrier()
    dist.destroy_process_group()


def _row(cell: Cell) -> list[str]:
    about = [cell.head, str(cell.ranks), f"{cell.identities:,}"]
    try:
        distributed.together(lambda: refuse(cell, CPU))
    except UserError as error:
        return [*about, str(error), "", "", ""]
    sent = messages_of(cell)
    return about + [text for kind in KINDS for text in (str(len(sent[kind])), f"{sum(sent[kind]) / 1024:,.1f}")]


def messages_of(cell: Cell) -> dict[str, list[int]]:
    """Bytes of each collective of a step, by kind; all ranks call it."""
    head = head_of(cell, CPU)
    for number in range(2):
        step(head, *batch_of(cell, number, CPU))
    with counted() as sent:
        step(head, *batch_of(cell, 2, CPU))
    return sent


@contextmanager
def counted() -> Iterator[dict[str, list[int]]]:
    """The bytes that this rank puts into each collective of `ffc_ds.distributed` meanwhile, by kind."""
    sent = {kind: [] for kind in KINDS}
    gather, reduce = distributed._gather_into, dist.all_reduce

    def count(kind: str, tensor: torch.Tensor) -> torch.Tensor:
        sent[kind].append(tensor.nbytes)
        return tensor

    with (
        mock.patch.object(distributed, "_gather_into", lambda into, own: gather(into, count("all_gather", own))),
        mock.patch.object(dist, "all_reduce", lambda own, **more: reduce(count("all_reduce", own), **more)),
    ):
        yield sent
