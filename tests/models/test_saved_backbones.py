"""A backbone is opened from its folder or its run; what is no such thing is named."""

import pytest
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from ffc_ds.errors import UserError
from ffc_ds.models.opening import load_model
from tests.protocol_data import tiny_model


def test_models_that_cannot_be_used(tmp_path, monkeypatch):
    run = tmp_path / "run"
    tiny_model(run / "model")
    assert load_model(str(run)).config == load_model(str(run / "model")).config  # the run or its model
    weights = load_file(run / "model" / "model.safetensors")
    weights.pop("fc.weight")
    save_file(weights, run / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="fc.weight"):
        load_model(str(run))
    with pytest.raises(UserError, match="config.json is missing"):
        load_model(str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("no/such/folder", "/no_such_folder"):
        with pytest.raises(UserError, match=f"no folder {name} here"):
            load_model(name)
    BertModel(BertConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)).save_pretrained(
        tmp_path / "bert"
    )
    with pytest.raises(UserError, match="BertModel, which gives no face embeddings"):
        load_model(str(tmp_path / "bert"))
