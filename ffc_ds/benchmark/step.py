"""Comparison by the whole training step: images/s of a run, of the bare net, and of a plain dense softmax."""

import json
from itertools import product
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import NonNegativeInt, PositiveInt

from ffc_ds.benchmark.heads import Count
from ffc_ds.benchmark.pages import this_command
from ffc_ds.benchmark.step_cell import DS_CONFIGS, HEADS, StepCell
from ffc_ds.benchmark.step_page import summary, write_step
from ffc_ds.benchmark.step_timing import measure_in_processes
from ffc_ds.errors import UserError
from ffc_ds.models import BACKBONES, build_backbone

NET = {"cuda": ("iresnet50", 112, 128), "cpu": ("iresnet18", 32, 64)}  # what each does in a tenth of a second or so


def run_step(
    sizes: tuple[Count, ...] = (1e4, 1e5, 1e6),
    ranks: tuple[PositiveInt, ...] = (1, 2),
    heads: tuple[str, ...] = ("full_fc", "partial_fc", "virtual_fc", "metric", "ffc"),
    dtype: str = "float32",
    head_dtype: str = "float32",
    device: str = "auto",
    model: str = "auto",
    overrides: dict[str, Any] | None = None,
    image_size: NonNegativeInt = 0,
    batch: NonNegativeInt = 0,
    compile: str = "off",
    repeats: PositiveInt = 5,
    minutes: PositiveInt = 10,
    output: str = "docs/results",
    again: bool = False,
) -> None:
    """Measure the whole training step with every head against the bare net and a plain dense softmax.

    What a cell gave lies in OUTPUT/step as soon as it ends, and a cell that is there is not measured again, unless it
    was skipped or failed. OUTPUT/step.md and step.png show all cells of that folder, and are written after each. Raises
    UserError for what is not there: a head, a type, a device, a setting of the backbone.

    Args:
        sizes: Numbers of identities.
        ranks: Numbers of processes; on GPUs at most as many as there are, on a CPU they share its cores.
        heads: Some of full_fc, partial_fc, virtual_fc, metric, ffc, and ffc_lru (head.pool lru with a gallery net).
        dtype: Type that the net computes in: float32, bfloat16 or float16 (on GPUs), with the ds_config for it.
        head_dtype: Type of the class state, head.dtype: float32 or bfloat16.
        device: cpu, cuda, or auto for a GPU if there is one.
        model: A backbone; auto is iresnet50 on a GPU, iresnet18 on a CPU.
        overrides: Further settings of the backbone, as model.overrides has them: {width: 0.5}.
        image_size: Side of its input in pixels; 0 is 112 on a GPU, 32 on a CPU.
        batch: Images of a rank in a step, an even number; 0 is 128 on a GPU, 64 on a CPU.
        compile: on compiles the nets, and measures the bare one both ways; off.
        repeats: Rounds in which each system is timed in turn.
        minutes: What a cell may take.
        output: Folder of the results.
        again: Measure cells anew that are there.
    """
    from ffc_ds.training.report import versions  # imports DeepSpeed

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _check(heads, dtype, head_dtype, device, model, batch, compile)
    chosen, overrides = (model.replace("auto", ""), image_size, batch), overrides or {}
    net = [own or usual for own, usual in zip(chosen, NET[device], strict=True)]
    with torch.device("meta"):
        build_backbone(*net[:2], **overrides)
    folder = Path(output) / "step"
    folder.mkdir(parents=True, exist_ok=True)
    about = {"command": this_command(), "versions": versions()}
    for size, world, head in product(sorted(sizes), ranks, heads):
        cell = StepCell(head, round(size), world, dtype, head_dtype, device, *net, compile == "on", overrides)
        path = folder / f"{cell.name}.json"
        if not again and _is_there(path):
            continue
        if device == "cuda" and world > torch.cuda.device_count():
            print(f"{world} ranks: there are not so many GPUs here", flush=True)
            continue
        measure_in_processes(cell, repeats, minutes, path, about)
        print(summary(json.loads(path.read_text())), flush=True)
        write_step(Path(output))
    write_step(Path(output))


def _is_there(path: Path) -> bool:
    return path.exists() and "systems" in json.loads(path.read_text())


def _check(heads, dtype, head_dtype, device, model, batch, compile) -> None:
    """Raise UserError for what is not there."""
    choices = [(head, "--heads", HEADS) for head in heads]
    choices += [(dtype, "--dtype", DS_CONFIGS), (head_dtype, "--head_dtype", ("float32", "bfloat16"))]
    choices += [(device, "--device", ("auto", *NET)), (model, "--model", ("auto", *BACKBONES))]
    for chosen, option, known in [*choices, (compile, "--compile", ("on", "off"))]:
        if chosen not in known:
            raise UserError(f"{option} {chosen}: choose from {', '.join(known)}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here. Use --device cpu.")
    if device == "cpu" and dtype == "float16":
        raise UserError("--dtype float16 is for GPUs: on a CPU use bfloat16 or float32.")
    if batch % 2:
        raise UserError(f"--batch {batch} has no two equal views: choose an even number.")
