"""A backbone is opened from its folder or its run; what is no such thing is named."""

import json

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


@pytest.mark.parametrize("model_type", ["ffc_iresnet", "unheard_of"])
def test_the_code_of_a_folder_is_not_run(tmp_path, model_type):
    tiny_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": model_type if model_type == "unheard_of" else config["model_type"]}
    config["auto_map"] = {"AutoConfig": "planted.Config", "AutoModel": "planted.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "planted.py").write_text(
        f"open({str(tmp_path / 'trace')!r}, 'w')\nclass Config: pass\nclass Model: pass\n"
    )
    if model_type == "unheard_of":
        with pytest.raises(UserError, match="cannot be loaded"):
            load_model(str(tmp_path))
    else:
        load_model(str(tmp_path))
    assert not (tmp_path / "trace").exists()
