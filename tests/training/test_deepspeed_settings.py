"""Which ds_configs are taken, and what is said of those that are not."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from ffc_ds.config.settings import Config
from ffc_ds.errors import UserError

DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"
ROWS = 12


@pytest.mark.parametrize(
    ("content", "mentions"),
    [
        (None, ["missing.json", "No such file"]),
        ("{", ["not JSON"]),
        ('{"train_batch_size": 7}', ["train_batch_size is 7", "12", "auto"]),
        ('{"optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}}', ["0.0001", "optim.lr 0.1"]),
        ('{"optimizer": {"type": "AdamW", "params": {"betas": "auto"}}}', ["optimizer.params.betas", "auto"]),
        ('{"scheduler": {"type": "WarmupLR"}}', ["scheduler", "optim"]),
        ('{"checkpoint": {"load_universal": true}}', ["leave `checkpoint` out"]),
        ('{"managed_gradient_accumulation": false}', ["managed_gradient_accumulation", "train.accumulation"]),
        ('{"bfloat16": {"enabled": true}}', ["`bfloat16`", "`bf16`"]),
        ('{"bf16": {"enabled": true}}', ["bf16 and fp16 want zero_optimization.stage 1"]),
        ('{"bf16": {"enabled": true}, "zero_optimization": {"stage": 0}}', ["want zero_optimization.stage 1"]),
    ],
)
def test_a_ds_config_that_cannot_be_used(tmp_path, content, mentions):
    from ffc_ds.training.deepspeed_settings import read_deepspeed_config

    path = tmp_path / "missing.json"
    if content is not None:
        path.write_text(content)
    config = Config(deepspeed=str(path))
    config.data.batch_size = ROWS
    with pytest.raises(UserError) as caught:
        read_deepspeed_config(config)
    assert all(word in str(caught.value) for word in mentions), caught.value


@pytest.mark.parametrize(
    ("content", "mentions"),
    [
        ({"zero_optimization": {"stage": 7}}, ["stage", "7"]),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": "large"}}, ["reduce_bucket_size", "large"]),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, ["fp16"]),
        ({"communication_data_type": 3}, ["DeepSpeed cannot work with"]),
        ({"optimizer": {"type": "AdamX", "params": {}}}, ["optimizer AdamX", "SGD, Adam, AdamW"]),
        ({"optimizer": {"type": "RAdam"}}, ["optimizer RAdam", "optim.name"]),
        ({"optimizer": {"type": "Lion"}}, ["optimizer Lion"]),
        ({"optimizer": {"type": "SGD"}}, None),
        ({"torch_autocast": {"enabled": True, "dtype": "float16"}}, ["leave `torch_autocast` out", "`bf16`"]),
        ({"torch_autocast": {"enabled": False}}, None),
        ({"amp": {"enabled": True, "opt_level": "O1"}}, ["leave `amp` out"]),
        ({"optimizer": {"type": "Adam", "params": {"lr": "auto"}}}, None),
    ],
)
def test_what_deepspeed_would_not_take_is_known_before_there_is_a_net(tmp_path, content, mentions):
    from ffc_ds.training.deepspeed_settings import check_deepspeed_config

    path = tmp_path / "odd.json"
    path.write_text(json.dumps(content))
    config = Config(deepspeed=str(path))
    config.data.batch_size = ROWS
    if mentions is None:
        check_deepspeed_config(config)
        return
    with pytest.raises(UserError) as caught:
        check_deepspeed_config(config)
    assert all(word in str(caught.value) for word in [str(path), *mentions]), caught.value


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fp16_is_for_gpus_even_where_a_cpu_computes_in_it(monkeypatch, device):
    from ffc_ds.training import deepspeed_settings

    accelerator = SimpleNamespace(device_name=lambda: device, is_fp16_supported=lambda: True)
    monkeypatch.setattr(deepspeed_settings, "get_accelerator", lambda: accelerator)
    config = Config(deepspeed=str(DS_CONFIGS / "fp16.json"))
    config.data.batch_size = ROWS
    if device == "cuda":
        assert deepspeed_settings.read_deepspeed_config(config)["fp16"]["enabled"]
    else:
        with pytest.raises(UserError, match=r"fp16.json asks for fp16.* bf16 \(bf16.json\) or fp32 \(zero2.json\)"):
            deepspeed_settings.read_deepspeed_config(config)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(AssertionError(), "AssertionError"), (ImportError("no x"), "no x"), (IndexError("i"), "i")],
)
def test_what_deepspeed_raises_is_the_users_to_mend_and_has_a_reason(error, reason):
    from ffc_ds.training.deepspeed_settings import refusals

    with pytest.raises(UserError, match=f"DeepSpeed cannot work with odd.json: {reason}"), refusals("odd.json"):
        raise error
