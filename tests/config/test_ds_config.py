"""A ds_config before DeepSpeed sees it: what is filled in, and what is refused with the place named."""

import json
import os

import pytest
import torch

from ffc_ds import half_precision
from ffc_ds.config.ds_config import fill_ds_config, read_ds_config
from ffc_ds.config.settings import Config, parse_config
from ffc_ds.errors import UserError
from tests.launched import ROOT


def write(folder, content):
    (folder / "odd.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder / "odd.json")


def filled(path, ranks=2):
    config = Config()
    config.data.batch_size, config.train.accumulation, config.optim.clip, config.optim.lr = 24, 3, 5.0, 0.2
    return fill_ds_config(read_ds_config(path), path, config, ranks)


def test_what_the_run_fills_in(tmp_path):
    ours = {
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 3,
        "gradient_clipping": 5.0,
    }
    for path in sorted((ROOT / "ds_configs").glob("*.json")):
        written = json.loads(path.read_text())
        assert filled(str(path)) == written | ours
    assert filled(write(tmp_path, {})) == ours
    optimizer = {"type": "AdamW", "params": {"lr": "auto", "weight_decay": "auto", "betas": [0.9, 0.99]}}
    found = filled(write(tmp_path, {"optimizer": optimizer, "gradient_clipping": 5}))["optimizer"]["params"]
    assert found == {"lr": 0.2, "weight_decay": 1e-4, "betas": [0.9, 0.99]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "odd.json is not JSON"),
        ("{'stage': 2}", "odd.json is not JSON"),
        ('{"bf16": {}, "bf16": {}}', "bf16 is there twice"),
        ("[" * 9999, "nested too deeply"),
        ([], "is no JSON object"),
        ("null", "is no JSON object"),
        ('"zero2"', "is no JSON object"),
        ({"zero_optimization": 3}, "zero_optimization is 3; it should be an object"),
        ({"zero_optimization": None}, "zero_optimization is null; it should be an object"),
        ({"zero_optimization": [{"stage": 2}]}, "zero_optimization is .* it should be an object"),
        ({"zero_optimization": {"stage": "3"}}, 'zero_optimization.stage is "3"; it should be a whole number'),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage is true; it should be a whole number"),
        ({"zero_optimisation": {"stage": 3}}, "no zero_optimisation. Did you mean zero_optimization"),
        ({"zero_optim": {"stage": 3}}, "no zero_optim. Did you mean zero_optimization"),
        ({"max_grad_norm": 1.0}, "no max_grad_norm. Take it out"),
        ({"steps_per_print": 0}, "steps_per_print is 0"),
        ({"bf16": True}, "bf16 is true; it should be an object"),
        ({"bf16": {"enabled": "no"}}, 'bf16.enabled is "no"; it should be true or false'),
        ({"fp16": {"enabled": 1}}, "fp16.enabled is 1; it should be true or false"),
        ({"train_batch_size": "24"}, 'train_batch_size is "24"; it should be a whole number'),
        ({"gradient_clipping": True}, "gradient_clipping is true; it should be a number"),
        ({"optimizer": "AdamW"}, "optimizer is .* it should be an object"),
        ({"optimizer": {"type": 3}}, "optimizer.type is 3; it should be text"),
        ({"optimizer": {"type": "AdamW", "params": [1]}}, "optimizer.params is .* it should be an object"),
        ({"comms_logger": 3}, "comms_logger is 3; it should be an object"),
    ],
)
def test_what_is_no_ds_config(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(UserError, match=message):
        read_ds_config(path)
    with pytest.raises(UserError, match=message) as caught:
        parse_config(["--deepspeed", path, "--data.train", "/nowhere"])
    assert caught.value.shared and path in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train_micro_batch_size_per_gpu": 5}, "train_micro_batch_size_per_gpu is 5, but the run asks for 4"),
        ({"gradient_clipping": 1}, "gradient_clipping is 1, but the run asks for 5.0"),
        ({"zero_optimization": {"stage": "auto"}}, 'zero_optimization.stage is "auto"'),
        ({"optimizer": {"params": {"lr": "auto"}}}, "optimizer has no type"),
    ],
)
def test_what_contradicts_the_run(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        filled(write(tmp_path, content))


def test_a_byte_order_mark_is_harmless(tmp_path):
    (tmp_path / "odd.json").write_bytes(b'\xef\xbb\xbf{"zero_optimization": {"stage": 1}}\r\n')
    assert read_ds_config(str(tmp_path / "odd.json")) == {"zero_optimization": {"stage": 1}}


@pytest.mark.parametrize(
    "able, usual",
    [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({"avx512_f": True}, "zero2"), ({}, "zero2")],
)
def test_auto_is_bf16_where_the_processor_multiplies_it(able, usual, monkeypatch):
    monkeypatch.setattr(half_precision, "multiplies_bf16", half_precision.multiplies_bf16.__wrapped__)  # as it is now
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    found = parse_config(["--deepspeed", "auto"]).deepspeed
    assert os.path.samefile(found, ROOT / "ds_configs" / f"{usual}.json")
