"""`launch/benchmark.py step`: the whole step with every head, what it is held against, and what a failure leaves."""

import json
import os
import time

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ffc_ds.benchmark import step, step_timing
from ffc_ds.benchmark.step_cell import StepCell, batches_of
from ffc_ds.benchmark.step_page import write_step
from ffc_ds.benchmark.step_timing import measure, measure_in_processes
from ffc_ds.distributed import all_gather, rank, world_size
from ffc_ds.errors import UserError
from launch.benchmark import main
from tests.ranks import run_ranks

CPU = torch.device("cpu")
TINY = ["--model", "mobilefacenet", "--image_size", "16", "--batch", "4", "--device", "cpu", "--repeats", "2"]
PARTS = {"probe forward", "head", "backward", "optimizer", "class optimizer"}


def cell(head="full_fc", ranks=1, **more):
    about = {"identities": 2000, "ranks": ranks, "dtype": "float32", "head_dtype": "float32", "device": "cpu"}
    about |= {"model": "mobilefacenet", "image_size": 16, "batch": 4, "compiled": False}
    return StepCell(head, **(about | more))


def assert_sane(found, gallery=False):
    systems, run = found["systems"], found["systems"]["product"]
    assert set(systems) == {"product", "bare", "plain"} and found["rounds"] == 2
    assert set(run["parts_ms"]) == PARTS | ({"gallery"} if gallery else set())
    for each in systems.values():
        numbers = [each[key] for key in ("step_ms", "images_per_second", "ratio", "start_s")]
        numbers += each["parts_ms"].values()
        assert np.isfinite(numbers).all() and min(numbers) > 0
        assert each["peak_gib"] >= 0 and each["refused"] == 0 and not each["compiled"]
    assert run["ratio"] == 1 and set(systems["bare"]["parts_ms"]) < PARTS


def every_head():
    os.environ.update(RANK=str(rank()), WORLD_SIZE=str(world_size()), LOCAL_RANK=str(rank()))
    half = cell("ffc_lru", dtype="bfloat16", head_dtype="bfloat16")
    cells = [cell("metric"), half]  # the others are in the tests below
    return {each.head: measure(each, 2, CPU, 60) for each in cells}


def test_every_kind_of_head_is_measured():
    [found] = run_ranks(1, every_head)
    for head, each in found.items():
        assert_sane(each, gallery=head == "ffc_lru")


def weights_after_a_step():
    """Of the net and of the classes, by a run's step and by the plain loop's, from the same ones; and before."""
    from ffc_ds.benchmark.step_systems import Bare, Plain, Product

    os.environ.update(RANK=str(rank()), WORLD_SIZE=str(world_size()), LOCAL_RANK=str(rank()))
    here = cell(ranks=2, batch=16)
    run, plain, bare = Product(here, CPU), Plain(here, CPU), Bare(here, CPU, compiled=False)
    plain.weights.data.copy_(all_gather(run.head.weights).flatten(0, 1))
    nets = run.engine.module, plain.net, bare.net
    before = [parameter.clone() for parameter in nets[0].parameters()]
    for system in (run, plain, bare):
        assert system.step(batches_of(here, CPU)[0], lambda name: None)
    own = plain.weights.data.chunk(2)[rank()]
    return [before, *([p.detach() for p in net.parameters()] for net in nets)], (run.head.weights, own)


def test_the_step_is_that_of_a_plain_loop_with_the_same_loss():
    for (before, run, plain, bare), classes in run_ranks(2, weights_after_a_step):
        for first, ours, theirs, other in zip(before, run, plain, bare, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
            assert not torch.equal(first, ours) and not torch.equal(first, other)
        torch.testing.assert_close(*classes, rtol=1e-4, atol=1e-5)


def test_batches_are_those_of_the_heads_loader():
    for head, shared in (("metric", 32), ("virtual_fc", 32), ("ffc_lru", 21), ("ffc", 0), ("full_fc", 0)):
        first, second = batches_of(cell(head, batch=64), CPU)[:2]
        assert first.identities.shape == (2, 32) and first.images.shape == (64, 3, 16, 16)
        assert 0 <= (first.identities[0] == first.identities[1]).sum() - shared <= 1
        assert first.labels.tolist() == first.identities.ravel().tolist() != second.labels.tolist()


def test_the_command_keeps_cells_and_goes_on_from_them(tmp_path, monkeypatch, capfd):
    arguments = ["step", *TINY, "--ranks", "2", "--heads", "partial_fc", "--output", str(tmp_path)]
    arguments += ["--model", "iresnet18", "--overrides", "{width: 0.125}"]
    main([*arguments, "--sizes", "2e3"])
    (path,) = (tmp_path / "step").iterdir()
    assert path.stem == "partial_fc-2000-ranks2-float32-cpu-iresnet18-width0.125-16px-batch4"
    found = json.loads(path.read_text())
    assert_sane(found)
    assert found["overrides"] == {"width": 0.125}
    assert found["messages_ms"] > 0 and found["command"].startswith("launch/benchmark.py")
    assert (tmp_path / "step.png").stat().st_size > 10_000
    text = (tmp_path / "step.md").read_text()
    assert "| partial_fc | 2 | 2,000 | " in text and "deepspeed 0." in text and "cores" in text

    measured = []
    monkeypatch.setattr(step, "measure_in_processes", lambda cell, *_: measured.append(cell.identities))
    main([*arguments, "--sizes", "2e3"])
    assert not measured
    del found["systems"]
    path.write_text(json.dumps(found | {"failed": "it broke"}))
    main([*arguments, "--sizes", "2e3"])
    assert measured == [2000]  # what failed may work today


def breaks(rank, *_):
    raise RuntimeError("what | broke\nits last line")


def sleeps(rank, *_):
    time.sleep(60)


def test_a_cell_that_breaks_or_hangs_says_so(tmp_path, monkeypatch):
    for number, (function, reason) in enumerate(((breaks, "its last line"), (sleeps, "more than 0 minutes"))):
        monkeypatch.setattr(step_timing, "_on_rank", function)
        path = tmp_path / f"{number}.json"
        measure_in_processes(cell(), 2, 0 if function is sleeps else 1, path, {"command": "x"})
        found = json.loads(path.read_text())
        assert reason in found["failed"] and (found["head"], found["command"]) == ("full_fc", "x")


def test_what_does_not_fit_is_not_tried():
    from ffc_ds.benchmark.step_systems import refuse_plain

    with pytest.raises(UserError, match=r"needs [\d,.]+ GiB on each rank"):
        refuse_plain(cell(identities=10**9), CPU)
    refuse_plain(cell(), CPU)


def result(head, identities, speed, **more):
    about = vars(cell(head, identities=identities)) | {"rounds": 5, "messages_ms": None, "machine": "A"}
    run = {"step_ms": 123.4, "images_per_second": speed, "ratio": 1.0, "refused": 2, "peak_gib": 1.5, "start_s": 9}
    run |= {"compiled": False, "parts_ms": {"probe forward": 12.34, "head": 1.234, "backward": 0.1234}}
    systems = {"product": run, "bare": run | {"images_per_second": 2 * speed, "ratio": 0.5}}
    systems["plain"] = {"skipped": "needs 9.0 GiB on each rank"}
    return about | {"systems": systems, "command": "launch/benchmark.py step", "versions": {"torch": "2"}} | more


def test_table_and_figure_show_every_cell(tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    (tmp_path / "step").mkdir()
    cells = [result("ffc", 10**5, 50), result("ffc", 10**4, 80), result("full_fc", 10**4, 70, compiled=True)]
    broken = result("metric", 10**4, 1, failed="a | b")
    del broken["systems"]
    for number, each in enumerate([*cells, broken]):
        (tmp_path / "step" / f"{number}.json").write_text(json.dumps(each))
    write_step(tmp_path)
    text = (tmp_path / "step.md").read_text()
    assert "| ffc | 1 | 100,000 | 50 | 100 | 0.50 |  |  | needs 9.0 GiB on each rank |  | 1.50 |  | 9.0 |  |" in text
    assert "| full_fc | 1 | 10,000 | 70 (not compiled) | 140 | 0.50 |" in text
    assert "mobilefacenet at 16 pixels, 4 images a rank, compiled\n" in text
    assert "| metric | 1 | 10,000 | failed: a / b |" in text
    assert "| ffc | 1 | 10,000 | 123 (2 refused) | 12.3 |  | 1.2 | 0.12 |  |  |  |" in text
    axes = next(each for each in figures[0].axes if "compiled" not in each.get_title())
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {"ffc": [[1e4, 80], [1e5, 50]], "bare": [[1e4, 160], [1e5, 100]]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--heads", "ful_fc"], "--heads ful_fc: choose from full_fc"),
        (["--dtype", "float16"], "float16 is for GPUs"),
        (["--model", "resnet"], "--model resnet"),
        (["--overrides", "{depth: 3}"], "mobilefacenet has no setting depth"),
        (["--batch", "3"], "--batch 3"),
        (["--compile", "maybe"], "--compile maybe: choose from on, off"),
    ],
)
def test_a_wrong_option_is_named(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        main(["step", *TINY, "--output", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()
