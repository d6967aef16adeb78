"""`launch/benchmark.py messages`: what is counted is what a head sends."""

from ffc_ds.benchmark.head_cell import Cell
from ffc_ds.benchmark.messages import messages_of, run_messages
from tests.ranks import run_ranks


def sent_by_full_fc():
    return messages_of(Cell("full_fc", 1000, 2, "float32", "cpu"))


def test_full_fc_sends_features_their_gradient_and_what_joins_the_softmax():
    features = 64 * 512 * 4
    for sent in run_ranks(2, sent_by_full_fc):
        assert sent["all_gather"] == [features]
        *joins, gradient = sorted(sent["all_reduce"])
        assert gradient == 2 * features and all(size <= 2 * 2 * 64 * 4 for size in joins) and len(joins) == 2


def test_the_command_writes_a_table(tmp_path):
    run_messages((2000.0,), (2,), str(tmp_path))
    text = (tmp_path / "messages.md").read_text()
    assert "| full_fc | 2 | 2,000 | 1 | 128.0 | 3 | 257.5 |" in text and "| metric | 2 | 2,000 | 1 | 128.0 |" in text
    assert "| virtual_fc | 2 | 2,000 | a batch may need 128 columns |" in text and "torch 2." in text
