import json
from types import SimpleNamespace

import pytest
import torch
import wandb

from ffc_ds.config.settings import Config, OptimConfig
from ffc_ds.errors import UserError
from ffc_ds.training.meter import Meter
from ffc_ds.training.schedule import learning_rate
from ffc_ds.training.tracking import Tracker, read_metrics, wandb_mode


def test_a_meter_taken_over_in_the_middle_gives_the_same_means():
    values = [({"loss": torch.tensor(0.1 * step), "fill": step / 7}) for step in range(9)]
    whole, first, second = Meter(8), Meter(8), Meter(8)
    for step, value in enumerate(values):
        whole.add(value)
        (first if step < 4 else second).add(value)
        if step == 3:
            second.load(json.loads(json.dumps(first.state())))
    timing = {"images_per_second", "data_wait", "memory_gib"}
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


def test_wandb_never_asks(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert wandb_mode("auto") == "offline"
    with pytest.raises(UserError, match="no API key"):
        wandb_mode("online")
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match="no API key"):
        wandb_mode("auto")
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    assert wandb_mode("auto") == "online" and wandb_mode("offline") == "offline"


def test_a_server_that_cannot_be_reached_does_not_end_the_run(monkeypatch, tmp_path, capsys):
    def init(mode, **_):
        if mode == "online":
            raise wandb.errors.CommError("no route to host")
        return SimpleNamespace(id=mode, finish=lambda: None, summary={})

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = Config(output_dir=str(tmp_path))
    tracker = Tracker(config, 0, 1)
    assert tracker.wandb_id == "offline" and "no route to host" in capsys.readouterr().out
    tracker.close()
    config.tracking.wandb = "online"
    with pytest.raises(UserError, match="no route to host: choose offline"):
        Tracker(config, 0, 1)


def test_the_published_schedule():
    optim = OptimConfig()
    rates = [learning_rate(optim, step, 190) for step in (0, 79, 80, 139, 140, 169, 170, 189)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 1e-4, 1e-4])


def test_warm_up_then_cosine_falls_to_zero():
    optim = OptimConfig(schedule="cosine", warmup=0.1)
    rates = [learning_rate(optim, step, 100) for step in range(100)]
    assert rates[:11] == sorted(rates[:11]) and rates[10] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 1e-4
