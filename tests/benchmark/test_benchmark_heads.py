"""`launch/benchmark.py heads`: every head is measured, on what it says, and what was measured is kept and shown."""

import json

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ffc_ds.benchmark import heads
from ffc_ds.benchmark.head_cell import DIM, Cell, batch_of, head_of, moved_bytes, products_of, refuse
from ffc_ds.benchmark.head_timing import measure, measure_in_processes
from ffc_ds.benchmark.plain_softmax import PlainSoftmax
from ffc_ds.config.settings import ClassOptimConfig, HeadConfig
from ffc_ds.errors import UserError
from ffc_ds.heads.full_fc import FullFC
from launch.benchmark import main

CPU = torch.device("cpu")
COLUMNS = {"plain": 1501, "full_fc": 1501, "partial_fc": 150, "virtual_fc": 65, "ffc": 300, "ffc_lru": 300}


def cell(head, ranks=1, **more):
    identities = {"virtual_fc": 6401, "ffc": 3000, "ffc_lru": 3000}.get(head, 1501)
    about = {"dtype": "float32", "device": "cpu", "pool_size": 0.1 if head.startswith("ffc") else 0.0}
    return Cell(head, identities, ranks, **(about | more))


def assert_sane(found):
    keys = (
        "step_ms",
        "products_ms",
        "products_ratio",
        "moving_ms",
        "ratio",
        "products_tflops",
        "copy_gb_s",
        "peak_gib",
    )
    numbers = [found[key] for key in keys]
    assert np.isfinite(numbers).all() and min(numbers) > 0
    assert found["ratio"] < found["products_ratio"]
    assert 0 <= found["own_gib"] <= found["peak_gib"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("head", heads.HEADS)
def test_every_head_is_measured(head, dtype):
    found = measure(cell(head, dtype=dtype), 2, CPU)
    assert_sane(found)
    assert found["columns"] == COLUMNS[head] and found["repeats"] == 2


def test_the_plain_softmax_learns_what_full_fc_learns():
    plain = PlainSoftmax(1501, DIM, torch.float32, CPU)
    full = FullFC(HeadConfig("full_fc"), ClassOptimConfig(), 1501, DIM, CPU)
    full.weights.copy_(plain.weights.data)
    for number in range(3):
        probe, identities, _ = batch_of(cell("plain"), number, CPU)
        losses = [head.loss(probe, identities)[0] for head in (plain, full)]
        torch.testing.assert_close(losses[0], losses[1])
        losses[0].backward()
        for head in (plain, full):
            head.step(True, 0.1)
    torch.testing.assert_close(full.weights, plain.weights.data)


@pytest.mark.parametrize("head", heads.HEADS)
def test_the_floor_is_the_products_with_the_heads_own_columns(head, monkeypatch):
    there = head_of(cell(head), CPU)
    products, mm = [], torch.mm
    floor = products_of(cell(head), there, CPU)
    monkeypatch.setattr(torch, "mm", lambda a, b, out: products.append((a, b)) or mm(a, b, out=out))
    floor()
    rows, columns = (128 if head == "ffc_lru" else 64), COLUMNS[head]
    forward, backward, weight = (
        ((rows, DIM), (DIM, columns)),
        ((rows, columns), (columns, DIM)),
        ((columns, rows), (rows, DIM)),
    )
    kinds = {"ffc": [forward, backward], "ffc_lru": [forward, backward, forward, backward]}
    expected = kinds.get(head, [forward, backward, weight])
    assert [tuple(tuple(matrix.shape) for matrix in pair) for pair in products] == expected
    (state,) = [shard.local for name, shard in there.shards().items() if name in ("weights", "pool")]
    assert products[0][1].data_ptr() == state.data_ptr()


def test_the_pool_is_full_and_batches_are_those_of_a_dual_loader():
    ffc = cell("ffc_lru")
    head = head_of(ffc, CPU)
    assert head.index.used == head.capacity == 300
    assert (head.storage.features[0].norm(dim=1) > 0.99).all()
    probe, identities, gallery = batch_of(ffc, 0, CPU)
    assert probe.shape == gallery.shape == (2, 128, DIM) and identities.shape == (2, 128)
    assert (identities[0] == identities[1]).sum() - 85 in (0, 1)
    assert not torch.equal(probe, gallery)


def test_two_ranks_in_processes_of_their_own(tmp_path):
    path = tmp_path / "cell.json"
    measure_in_processes(cell("partial_fc", ranks=2), 2, path, {"command": "x"})
    found = json.loads(path.read_text())
    assert_sane(found)
    assert (found["ranks"], found["columns"], found["command"]) == (2, 150, "x")
    assert [each.name for each in tmp_path.iterdir()] == ["cell.json"]


def test_what_does_not_fit_is_not_tried():
    with pytest.raises(UserError, match=r"needs [\d,.]+ GiB"):
        refuse(Cell("full_fc", 10**12, 2, "float32", "cpu"), CPU)
    with pytest.raises(UserError, match="may need 128 columns"):
        refuse(Cell("ffc_lru", 10**8, 1, "float32", "cpu", 100), CPU)
    refuse(Cell("ffc_lru", 10**8, 1, "float32", "cpu", 128), CPU)


def test_the_command_keeps_cells_and_goes_on_from_them(tmp_path, monkeypatch, capsys):
    arguments = ["heads", "--sizes", "2e3", "--ranks", "1", "--heads", "virtual_fc", "ffc", "--pools", "0.1", "1e4"]
    arguments += ["--repeats", "2", "--device", "cpu", "--output", str(tmp_path)]
    main(arguments)
    kept = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "heads").iterdir()}
    assert set(kept) == {"virtual_fc-2000-ranks1-float32-cpu", "ffc-pool0.1-2000-ranks1-float32-cpu"}
    assert_sane(kept["ffc-pool0.1-2000-ranks1-float32-cpu"])
    assert (tmp_path / "heads_cost.png").stat().st_size > 10_000
    text = (tmp_path / "heads.md").read_text()
    assert "| ffc, pool 10 % | 1 | 2,000 | 200 |" in text and "torch 2." in text and "cores" in text
    assert "| virtual_fc | 1 | 2,000 |  | a batch may need 64 columns |" in text

    measured = []
    monkeypatch.setattr(heads, "measure_in_processes", lambda cell, *_: measured.append(cell.head))
    main(arguments)
    assert measured == ["virtual_fc"]  # what was skipped may fit today
    main([*arguments, "--again"])
    assert measured == ["virtual_fc", "virtual_fc", "ffc"]


def test_what_must_move_beside_the_products():
    row = 512 * 4
    assert moved_bytes(cell("full_fc")) == 4 * 1501 * row
    assert moved_bytes(cell("full_fc", ranks=2, dtype="bfloat16")) == 4 * 751 * row // 2
    assert moved_bytes(cell("partial_fc")) == 6 * 150 * row
    assert moved_bytes(cell("ffc")) == (2 * 300 + 2 * 64) * row
    assert moved_bytes(cell("ffc_lru")) == 4 * 128 * row


def result(head, identities, step, ranks=1, pool=0.0, machine="A", **more):
    about = {"head": head, "identities": identities, "ranks": ranks, "pool_size": pool, "dtype": "float32"}
    numbers = {"columns": 7, "images": 4, "step_ms": step, "products_ratio": 3, "ratio": 2, "peak_gib": 3}
    numbers |= {"own_gib": identities / 1e6, "products_ms": 0.7, "moving_ms": 0.3}
    numbers |= {"products_tflops": 1.234, "copy_gb_s": 20}
    made = {"command": "launch/benchmark.py heads", "versions": {"torch": "2"}, "machine": machine}
    return about | numbers | made | more


def test_table_and_figure_show_every_cell_of_every_machine(tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k)))
    (tmp_path / "heads").mkdir()
    cells = [result("full_fc", 10**n, 12.345 * 10 ** (n - 4)) for n in (5, 4)]
    old = result("full_fc", 10**4, 8, ranks=2)
    for key in ("moving_ms", "ratio", "products_tflops", "copy_gb_s"):
        del old[key]
    cells += [old, result("ffc", 10**4, 5, pool=0.001)]
    cells += [result("ffc", 10**8, 5, pool=1e5, machine="B"), result("plain", 10**7, 0, skipped="needs 140.0 GiB")]
    for number, each in enumerate(cells):
        (tmp_path / "heads" / f"{number}.json").write_text(json.dumps(each))
    heads.write_heads(tmp_path)
    text = (tmp_path / "heads.md").read_text()
    first, second = text.split("## ")[1:]
    assert first.startswith("A, float32") and second.startswith("B, float32")
    assert "| full_fc | 1 | 10,000 | 7 | 12.3 | 3.1 | 0.70 | 3.00 | 0.30 | 2.00 | 3.00 | 0.01 |" in first
    assert "| full_fc | 2 | 10,000 | 7 | 8.0 | 2.0 | 0.70 | 3.00 | - | - | 3.00 | 0.01 |" in first
    assert "A rank of 1 here: products at 1.23 TFLOP/s, copies at 20 GB/s (read and written)" in first
    assert "| full_fc | 1 | 100,000 | 7 | 123 | 30.9 | 0.70 |" in first and "| ffc, pool 0.1 % | 1 |" in first
    assert "| plain | 1 | 10,000,000 |  | needs 140.0 GiB |" in first and first.count("```\npython ") == 1
    assert "| ffc, pool 100,000 | 1 | 100,000,000 |" in second
    time, memory, *_ = figures[0].axes
    assert {axes.get_xscale() + axes.get_yscale() for axes in figures[0].axes} == {"loglog"}
    lines = {line.get_label(): line.get_xydata().tolist() for line in time.lines}
    assert lines == {"full_fc": [[1e4, 3.08625], [1e5, 30.8625]], "ffc, pool 0.1 %": [[1e4, 1.25]]}
    assert [line.get_ydata().tolist() for line in memory.lines] == [[0.01, 0.1], [0.01]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--heads", "ful_fc"], "--heads ful_fc: choose from plain, full_fc"),
        (["--dtype", "int8"], "--dtype int8"),
        (["--sizes", "many"], "sizes"),
        (["--again", "please"], "please"),
    ],
)
def test_a_wrong_option_is_named(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message):
        main(["heads", "--output", str(tmp_path / "out"), *arguments])
    assert not (tmp_path / "out").exists()
