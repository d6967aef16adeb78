import json
import os
import resource
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import wandb

from ffc_ds.config.settings import Config, OptimConfig
from ffc_ds.errors import UserError
from ffc_ds.training import tracking
from ffc_ds.training.meter import Meter
from ffc_ds.training.schedule import for_batch, learning_rate
from ffc_ds.training.tracking import Tracker, read_metrics, wandb_mode


def test_a_meter_taken_over_in_the_middle_gives_the_same_means():
    values = [({"loss": torch.tensor(0.1 * step), "fill": step / 7}) for step in range(9)]
    whole, first, second = Meter(8), Meter(8), Meter(8)
    for step, value in enumerate(values):
        whole.add(value)
        (first if step < 4 else second).add(value)
        if step == 3:
            second.load(json.loads(json.dumps(first.state())))
    timing = {"images_per_second", "data_wait", "save_stall", "memory_gib"}
    whole, second = (meter.summary() for meter in (whole, second))
    assert {k: v for k, v in whole.items() if k not in timing} == {k: v for k, v in second.items() if k not in timing}
    assert whole["fill"] == pytest.approx(4 / 7)


def test_a_resumed_run_drops_the_lines_of_steps_it_will_do_again(tmp_path):
    config = Config(output_dir=str(tmp_path))
    config.tracking.wandb = "disabled"
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s}) + "\n" for s in (2, 4, 6)) + '{"step": 8, "lo'
    )
    tracker = Tracker(config, start_step=5, steps=10)
    tracker.log({"step": 6, "loss": float("nan")})
    tracker.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 2}, {"step": 4}, {"step": 6, "loss": None}]


def test_a_run_that_goes_on_from_elsewhere_drops_the_lines_of_another(tmp_path):
    config = Config(output_dir=str(tmp_path))
    config.tracking.wandb = "disabled"
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n')
    tracker = Tracker(config, start_step=3, steps=10, is_new=True)
    tracker.log({"step": 4, "loss": 1.0})
    tracker.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 4, "loss": 1.0}]


def test_a_run_resumed_at_its_end_says_nothing_twice(tmp_path):
    config = Config(output_dir=str(tmp_path))
    config.tracking.wandb = "disabled"
    lines = [{"step": 4, "loss": 1.0}, {"step": 4, "accuracy": 0.5}]
    damaged = '{"step": 3, "lo\0\0\n[]\n\0\0\n{"loss": 2}\n'
    (tmp_path / "metrics.jsonl").write_text(damaged + "".join(json.dumps(line) + "\n" for line in lines))
    tracker = Tracker(config, start_step=4, steps=4)
    tracker.log({"step": 4, "accuracy": 0.5})
    tracker.log({"step": 5, "accuracy": 0.5})
    assert read_metrics(tmp_path / "metrics.jsonl") == [*lines, {"step": 5, "accuracy": 0.5}]


def test_lines_that_cannot_be_written_are_written_later(tmp_path, capsys):
    config = Config(output_dir=str(tmp_path))
    config.tracking.wandb = "disabled"
    tracker, path = Tracker(config, 0, 9), tmp_path / "metrics.jsonl"
    tracker.log({"step": 1})
    path.rename(tmp_path / "kept")
    path.symlink_to("/dev/full")
    tracker.log({"step": 2})
    tracker.log({"step": 3})
    path.unlink()
    (tmp_path / "kept").rename(path)
    tracker.log({"step": 4})
    assert read_metrics(path) == [{"step": step} for step in (1, 2, 3, 4)]
    assert capsys.readouterr().out.count(f"{path} cannot be written: No space left on device") == 1


def test_half_a_line_is_taken_back_and_written_at_the_end(tmp_path):
    config = Config(output_dir=str(tmp_path))
    config.tracking.wandb = "disabled"
    tracker, path = Tracker(config, 0, 9), tmp_path / "metrics.jsonl"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    tracker.log({"step": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, limit[1]))
    try:
        tracker.log({"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_text() == '{"step": 1}\n'
    tracker.close()  # by then there is room again
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.fixture
def fresh_wandb(monkeypatch, tmp_path):
    """The library without a key and with no memory of an environment before."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    wandb.teardown()
    yield
    wandb.teardown()


def test_wandb_never_asks(monkeypatch, fresh_wandb):
    assert wandb_mode("auto") == "offline"
    with pytest.raises(UserError, match="no API key"):
        wandb_mode("online")
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="no API key"):
        wandb_mode("auto")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_mode("auto") == "online" and wandb_mode("offline") == "offline"


def test_the_key_of_the_server_that_is_asked(monkeypatch, fresh_wandb, tmp_path):
    (tmp_path / ".netrc").write_text(f"machine wandb.example.org login user password {'x' * 40}\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert wandb_mode("auto") == "online"


@pytest.mark.parametrize(
    ("variable", "mode", "word"),
    [
        ("WANDB_MODE=", "online", ""),
        ("WANDB_MODE=Dryrun", "offline", ""),
        ("WANDB_MODE=run", "online", ""),
        ("WANDB_MODE=disabled", "disabled", ""),
        ("WANDB_MODE=off", "offline", "WANDB_MODE=off is none of online, offline, disabled"),
        ("WANDB_DISABLED=true", "disabled", ""),
        ("WANDB_DISABLED=false", "online", ""),
    ],
)
def test_variables_of_wandb(monkeypatch, fresh_wandb, capsys, variable, mode, word):
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv(*variable.split("="))
    assert wandb_mode("auto") == mode
    assert (word in capsys.readouterr().out) if word else (capsys.readouterr().out == "")


def test_values_that_the_library_does_not_know_do_not_end_the_run(monkeypatch, fresh_wandb, tmp_path, capsys):
    monkeypatch.setenv("WANDB_MODE", "")
    config = Config(output_dir=str(tmp_path))
    tracker = Tracker(config, 0, 1)
    assert tracker.wandb_id and list(tmp_path.glob("wandb/offline-run-*"))
    tracker.close()
    wandb.teardown()
    monkeypatch.setenv("WANDB_SILENT", "perhaps")
    tracker = Tracker(config, 0, 1)
    assert tracker.wandb_id is None and "'perhaps'" in capsys.readouterr().out
    tracker.close()


class OutOfOrder(BaseHTTPRequestHandler):
    def do_POST(self):
        self.send_error(500)

    def log_message(self, *_):
        pass


@contextmanager
def server(kind):
    """The address of a server of that kind."""
    if kind == "out of order":
        with ThreadingHTTPServer(("127.0.0.1", 0), OutOfOrder) as listening:
            threading.Thread(target=listening.serve_forever, daemon=True).start()
            yield "http://{}:{}".format(*listening.server_address)
            listening.shutdown()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            address = "http://{}:{}".format(*listening.getsockname())
            if kind == "closed":
                listening.close()
            yield address


@pytest.mark.parametrize("kind", ["silent", "closed", "out of order"])
def test_a_server_that_cannot_be_used_does_not_end_the_run(monkeypatch, fresh_wandb, tmp_path, capsys, kind):
    monkeypatch.setattr(tracking, "ANSWER", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    config = Config(output_dir=str(tmp_path))
    with server(kind) as address:
        monkeypatch.setenv("WANDB_BASE_URL", address)
        tracker = Tracker(config, 0, 1)
        assert list(tmp_path.glob(f"wandb/offline-run-*-{tracker.wandb_id}"))
        tracker.close()
        said = capsys.readouterr().out
        assert "Weights & Biases cannot be used online" in said and said.endswith("going on offline\n")
        config.tracking.wandb = "online"
        with pytest.raises(UserError, match="tracking.wandb is online, but .*: choose offline"):
            Tracker(config, 0, 1)


def test_patience_with_a_silent_server_is_short():
    assert 2 * tracking.ANSWER < 20  # seconds: once for an answer, once for the run


def test_the_published_schedule():
    optim = OptimConfig()
    rates = [learning_rate(optim, step, 190) for step in (0, 79, 80, 139, 140, 169, 170, 189)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 1e-4, 1e-4])


def test_warm_up_then_cosine_falls_to_zero():
    optim = OptimConfig(schedule="cosine", warmup=0.1)
    rates = [learning_rate(optim, step, 100) for step in range(100)]
    assert rates[:11] == sorted(rates[:11]) and rates[10] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 1e-4


def insightfaces_schedule(lr, warmup_iters, total_iters, power):
    """PolynomialLRWarmup of InsightFace's arcface_torch, which multiplies the last rate by a factor."""
    rate = lr
    for step in range(total_iters):
        if 0 < step <= warmup_iters:
            rate = lr * step / warmup_iters
        elif step:
            left, before = (1 - (i - warmup_iters) / (total_iters - warmup_iters) for i in (step, step - 1))
            rate *= (left / before) ** power
        yield rate


@pytest.mark.parametrize(("warmup", "power"), [(0.0, 1.0), (0.0, 2.0), (0.1, 2.0)])
def test_poly_is_that_of_insightface(warmup, power):
    optim = OptimConfig(schedule="poly", warmup=warmup, power=power)
    rates = [learning_rate(optim, step, 100) for step in range(100)]
    begin = round(100 * warmup)
    expected = list(insightfaces_schedule(0.1, begin, 100, power))
    assert rates[begin:] == pytest.approx(expected[begin:])
    assert rates[:begin] == sorted(rates[:begin]) and max(rates) == pytest.approx(0.1)


def test_the_learning_rate_follows_the_batch_if_it_is_meant_for_one():
    assert for_batch(OptimConfig(lr=0.1), 7).lr == 0.1
    assert for_batch(OptimConfig(lr=0.1, lr_batch=1024), 512).lr == pytest.approx(0.05)
    assert for_batch(OptimConfig(lr=0.1, lr_batch=1024), 4096).lr == pytest.approx(0.4)
