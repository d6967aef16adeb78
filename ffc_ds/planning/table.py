"""The plan as it is printed, and the rate of matrix products that it can be based on."""

import time
from dataclasses import replace

import torch

from ffc_ds.planning.backbone import DTYPES, Backbone, count_backbone
from ffc_ds.planning.plan import OVERHEAD, Plan, make_plan, remedies
from ffc_ds.planning.released import released_partial_fc
from ffc_ds.planning.settings import HEADS, PlanSettings

MEASURE_SECONDS = 0.5


def report(settings: PlanSettings) -> str:
    """A table with a column for each head that was asked for, and what to change where it does not fit.

    Raises UserError if the backbone cannot be built.
    """
    backbone = count_backbone(settings)
    heads = HEADS if settings.head == "all" else (settings.head,)
    plans = [make_plan(replace(settings, head=head), backbone) for head in heads]
    rate = matrix_rate(settings.dtype) if settings.measure else 1e12 * (settings.matrix_tflops or 0)
    return "\n".join([_headline(settings, backbone), "", *_table(plans, rate), "", *_advice(plans, backbone)])


def matrix_rate(dtype: str) -> float:
    """FLOP/s of matrix products on this machine."""
    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 1024)
    a = torch.ones(size, size, device=device, dtype=DTYPES[dtype])
    start, products = 0.0, -1  # the first one loads the library
    while products < 1 or time.perf_counter() - start < MEASURE_SECONDS:
        (a @ a)[0, 0].item()
        products += 1
        start = start or time.perf_counter()
    return 2 * size**3 * products / (time.perf_counter() - start)


def _headline(settings, backbone):
    return (
        f"{settings.identities:,.0f} identities, {settings.images:,.0f} images; {settings.gpus} GPUs of "
        f"{settings.gpu_memory:g} GiB, {settings.batch_size} images each in {settings.dtype}, ZeRO {settings.zero}; "
        f"{settings.backbone}: {backbone.parameters / 1e6:.1f} M weights, {backbone.flops / 1e9:.2f} GFLOP an image"
    )


def _table(plans: list[Plan], rate: float) -> list[str]:
    rows = [["", *(plan.settings.head for plan in plans)]]

    def add(name, values, form="{:,.2f}"):
        rows.append([name, *(form.format(value) if value else "-" for value in values)])

    def add_parts(title, parts, unit):
        rows.append([title, *("" for _ in plans)])
        for name in parts[0]:
            add("  " + name, [part[name] / unit for part in parts])
        add("  total", [sum(part.values()) / unit for part in parts])

    add_parts("memory of a GPU, GiB", [plan.memory for plan in plans], 2**30)
    rows.append(["  fits", *("yes" if plan.fits else "no" for plan in plans)])
    add_parts("sent by a GPU in a step, MB", [plan.sent for plan in plans], 1e6)
    add_parts("memory of a host, GiB", [plan.host for plan in plans], 2**30)
    add("TFLOP of a GPU in a step", [plan.flops / 1e12 for plan in plans])
    if rate:
        speeds = [plan.images_per_second(rate) for plan in plans]
        add(f"images/s at {rate / 1e12:.3g} TFLOP/s, at most", speeds, "{:,.0f}")
        add("hours for all images, at least", [plans[0].settings.images / speed / 3600 for speed in speeds])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    first, *others = widths
    return [
        "  ".join([name.ljust(first), *(cell.rjust(w) for cell, w in zip(cells, others, strict=True))]).rstrip()
        for name, *cells in rows
    ]


def _advice(plans: list[Plan], backbone: Backbone) -> list[str]:
    lines = []
    for plan in plans:
        if plan.settings.head == "partial_fc":
            released = OVERHEAD + sum(released_partial_fc(plan.settings, backbone).values())
            lines.append(f"partial_fc: the released code would take {released / 2**30:,.1f} GiB of each GPU.")
        if plan.fits:
            continue
        why = plan.refusal or f"{plan.total / 2**30:,.1f} GiB"
        changes = remedies(plan.settings, backbone)
        end = ". Any one of these is enough:" if changes else ", and no single change is enough."
        lines += [f"{plan.settings.head} does not fit ({why}){end}", *(f"  - {change}" for change in changes)]
    return lines
