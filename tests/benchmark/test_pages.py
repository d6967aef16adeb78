"""Tables of the benchmarks and how they were made."""

import sys

import psutil
import torch

from ffc_ds.benchmark.pages import cores, how_it_was_made, markdown_table, this_command, this_machine


def test_a_table():
    assert markdown_table(["a", "b"], [["1", "2"], ["3", ""]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |\n| 3 |  |"


def test_how_it_was_made_can_be_repeated(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["launch/benchmark.py", "heads", "--output", "my results"])
    made = how_it_was_made([this_command(), "x"], {"torch": "2.13", "device": "x86_64"}, "M")
    assert made == "```\npython launch/benchmark.py heads --output 'my results'\npython x\n```\n\ntorch 2.13, on M."
    assert how_it_was_made(["x"], {}).endswith(f"{this_machine()}.")


def test_the_machine_is_described_by_what_sets_its_pace():
    about = this_machine("cpu")
    assert f"{cores()} cores" in about and torch.backends.cpu.get_cpu_capability() in about
    assert about.endswith(f"{psutil.virtual_memory().total / 2**30:.0f} GiB")
