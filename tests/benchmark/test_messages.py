"""`launch/benchmark.py messages`: what is counted is what a head sends."""

from launch.benchmark import main


def test_every_head_and_what_it_sends(tmp_path):
    main(["messages", "--sizes", "2e3", "--ranks", "2", "--output", str(tmp_path)])
    text = (tmp_path / "messages.md").read_text()
    # Features of 64 rows; their gradient, of both ranks; and for each of 128 rows three numbers that join the softmax.
    features, gradient, softmax = 64 * 512 * 4 / 1024, 128 * 512 * 4 / 1024, 3 * 128 * 4 / 1024
    for head in ("full_fc", "partial_fc", "ffc"):
        assert f"| {head} | 2 | 2,000 | 1 | {features:.1f} | 3 | {gradient + softmax:.1f} |" in text
    assert f"| metric | 2 | 2,000 | 1 | {features:.1f} | 1 | {gradient:.1f} |" in text
    assert "| virtual_fc | 2 | 2,000 | a batch may need 128 columns |" in text and "torch 2." in text
