"""Encoders of transformers as backbones: what they see and give, their plans, and what is none."""

import copy
import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel, BertConfig, BertModel, LevitConfig, Swinv2Config, ViTMAEConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.vit.modeling_vit import ViTForImageClassification

from ffc_ds.config.settings import parse_config
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.errors import UserError
from ffc_ds.models import build_backbone
from ffc_ds.models.hub_source import check_half_precision, hub_weights, normalisation, usual_image_size
from ffc_ds.models.opening import load_model
from ffc_ds.models.saving import save_backbone
from ffc_ds.planning.backbone import count_backbone
from ffc_ds.planning.settings import PlanSettings
from ffc_ds.training.identity import identity_of
from ffc_ds.training.starting_weights import freeze, start_from_weights
from tests.hub_models import FAMILIES, MEAN, MLP, STD, TOKENS, hub_model
from tests.protocol_data import tiny_model

POOLED = {
    "vit": "class",
    "dinov2": "class",
    "swin": "mean",
    "convnextv2": "spatial",
    "resnet": "spatial",
    "siglip": "mean",
}
HALF = [0.5, 0.5, 0.5]
UNUSED = {"vit": {"pooler"}, "dinov2": {"embeddings"}, "siglip": {"head"}}


@pytest.mark.parametrize("family", FAMILIES)
def test_it_sees_what_its_processor_would_show_it_and_is_saved_as_it_is(tmp_path, family):
    folder = hub_model(tmp_path / "hub", family)
    config = parse_config(["--model.name", f"hub:{folder}", "--model.embedding_size", "16"])
    assert config.model.image_size == 32
    net = build_backbone(config.model.name, config.model.image_size, config.model.embedding_size)
    taken = start_from_weights(config, net, None)
    named = dict(net.encoder.named_parameters())
    assert taken == sorted(f"encoder.{name}" for name in named)
    assert {name.split(".")[0] for name, p in named.items() if not p.requires_grad} == UNUSED.get(family, set())

    pixels = torch.rand(3, 3, 32, 32)
    net(pixels * 2 - 1).embeddings.square().sum().backward()  # statistics move
    assert all((p.grad is not None) == p.requires_grad for p in net.parameters())
    truth = AutoModel.from_pretrained(folder)
    truth = getattr(truth, "vision_model", truth).eval()
    seen = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    more = {"interpolate_pos_encoding": True} if family in ("vit", "siglip") else {}
    net.eval()
    with torch.no_grad():
        if family != "resnet":  # whose statistics have moved
            last = truth(pixel_values=seen, **more).last_hidden_state
            pooled = {"class": lambda: last[:, 0], "mean": lambda: last.mean(1)}.get(POOLED[family])
            pooled = pooled() if pooled else truth(pixel_values=seen).pooler_output.flatten(1)
            expected = net.features(net.fc(pooled))
            torch.testing.assert_close(net(pixels * 2 - 1).embeddings, expected, rtol=1e-4, atol=1e-4)
        save_backbone(net, tmp_path / "saved")
        opened = load_model(str(tmp_path / "saved"))
        torch.testing.assert_close(opened(pixels * 2 - 1).embeddings, net(pixels * 2 - 1).embeddings)
        for parameter in opened.parameters():  # buffers stay fp32, as DeepSpeed leaves them
            parameter.data = parameter.data.bfloat16()
        assert opened.train()(pixels.bfloat16()).embeddings.isfinite().all()


@pytest.mark.parametrize(
    "family", ["convnextv2", "siglip"]
)  # numbers looked at while it is built; a part that is unused
def test_it_is_planned(tmp_path, family):
    settings = {"backbone": f"hub:{hub_model(tmp_path, family)}", "image_size": 32, "embedding_size": 16}
    plan = count_backbone(PlanSettings(1e3, 1e4, 1, batch_size=4, zero=2, **settings))
    assert plan.parameters == sum(p.numel() for p in build_backbone(settings["backbone"], 32, 16).parameters())
    assert plan.flops > 0 and plan.kept[1] > 0


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"image_processor_type": "BitImageProcessor"}, (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)),
        ({"image_processor_type": "BitImageProcessorFast", "image_std": STD}, (OPENAI_CLIP_MEAN, STD)),
        ({"feature_extractor_type": "PerceiverFeatureExtractor"}, (MEAN, STD)),
        ({"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": False}, ([0.0] * 3, [1.0] * 3)),
        ({"image_processor_type": "MyImageProcessor", "auto_map": {"AutoImageProcessor": "a.b"}}, (HALF, HALF)),
        ({"image_processor_type": "MobileViTImageProcessor"}, "do_flip_channel_order"),
        ({"image_processor_type": "EfficientNetImageProcessor"}, "include_top"),
        ({"rescale_offset": True}, "rescale_offset"),
        ({"rescale_factor": 1 / 127.5}, "rescales by 0.0078"),
        ({"do_rescale": False}, "rescales by 1,"),
    ],
)
def test_what_the_processor_of_a_file_does(tmp_path, processor, expected):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected):
            normalisation(tmp_path)
    else:
        assert normalisation(tmp_path) == expected


def test_another_size_and_a_head_for_something_else(tmp_path):
    kind, config = ViTForImageClassification, FAMILIES["vit"][1]
    kind(config).save_pretrained(tmp_path)  # no pooler there, a classifier that is not wanted, no image processor
    name = f"hub:{tmp_path}"
    assert usual_image_size(name) == 32 and normalisation(tmp_path) == ([0.5] * 3, [0.5] * 3)
    config = parse_config(["--model.name", name, "--model.image_size", "48", "--model.overrides.pooling", "mean"])
    net = build_backbone(name, 48, 16, **config.model.overrides, attention_probs_dropout_prob=0.1)
    taken = start_from_weights(config, net, None)
    assert config.model.image_size == 48 and net.config.pooling == "mean"
    assert net.config.encoder["attention_probs_dropout_prob"] == 0.1
    table = hub_weights(name)["embeddings.position_embeddings"]
    grid = net.encoder.embeddings.position_embeddings
    assert grid.shape == (1, 37, 32) and torch.equal(grid[:, 0], table[:, 0])
    assert "encoder.embeddings.position_embeddings" in taken
    assert net(torch.zeros(2, 3, 48, 48)).embeddings.shape == (2, 16)


def test_a_configuration_without_weights_begins_anew(tmp_path, capsys):
    folder = hub_model(tmp_path, "convnextv2", weights=False)
    config = parse_config(["--model.name", f"hub:{folder}"])
    net = build_backbone(config.model.name, 32, 16)
    assert start_from_weights(config, net, None) == []
    out = capsys.readouterr()
    assert "has no weights, only a configuration" in out.out + out.err
    with pytest.raises(UserError, match="nothing came from weights"):
        start_from_weights(
            parse_config(["--model.name", f"hub:{folder}", "--optim.backbone_lr_factor", "0.1"]), net, None
        )


def test_what_is_no_encoder_of_images(tmp_path, monkeypatch):
    small = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertModel(BertConfig(**small)).save_pretrained(tmp_path / "bert")
    tiny_model(tmp_path / "ours")
    (tmp_path / "empty").mkdir()
    odd = {"odd": {"model_type": "unheard_of"}, "timm": {"architecture": "resnet18", "pretrained_cfg": {}}}
    for name, config in odd.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, message in {
        "bert": "type bert, which has no encoder of images",
        "ours": "backbone of ours: it is model.weights",
        "empty": "empty holds no model: config.json is missing",
        "odd": "holds no model that transformers knows",
        "timm": "holds no model that transformers knows: .*timm",
        "nowhere": "no folder .*nowhere here",
    }.items():
        with pytest.raises(UserError, match=message):
            build_backbone(f"hub:{tmp_path / name}", 32, 16)


def test_what_an_encoder_cannot_do(tmp_path):
    folder = hub_model(tmp_path / "vit", "vit")
    with pytest.raises(UserError, match="cannot be used on images of 30 pixels"):
        build_backbone(f"hub:{folder}", 30, 16, patch_size=64)
    patch = r"image_size 30 is no multiple .* patch_size 16: .* last 14 rows and columns. 16 or 32 is one"
    with pytest.raises(UserError, match=patch):
        build_backbone(f"hub:{folder}", 30, 16, patch_size=16)
    with pytest.raises(UserError, match=r"has no setting depth. There are: pooling, batch_norm, .*hidden_size"):
        build_backbone(f"hub:{folder}", 32, 16, depth=3)
    with pytest.raises(UserError, match="pooling class does not suit features of the shape"):
        build_backbone(f"hub:{hub_model(tmp_path / 'resnet', 'resnet')}", 32, 16, pooling="class")
    for override, message in {
        "pooling": "pooling 3 is none of",
        "batch_norm": "batch_norm",
        "patch_size": "hub",
    }.items():
        with pytest.raises(UserError, match=message):
            build_backbone(f"hub:{folder}", 32, 16, **{override: 3 if override == "pooling" else "x"})
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pytorch_model.bin, which is not read"):
        hub_weights(f"hub:{folder}")
    weights.write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be loaded"):
        hub_weights(f"hub:{folder}")
    hub_model(tmp_path / "other", "dinov2").joinpath("model.safetensors").rename(weights)
    config = parse_config(["--model.name", f"hub:{folder}"])
    with pytest.raises(UserError, match=r"(?s)does not fit: .*missing: .*layers"):
        start_from_weights(config, build_backbone(config.model.name, 32, 16), None)
    save_file({"another.weight": torch.ones(2)}, weights, {"format": "pt"})
    with pytest.raises(UserError, match="no tensor in its safetensors has name and shape"):
        hub_weights(f"hub:{folder}")


def test_weights_on_the_hub_that_are_not_fetched_are_not_taken_for_none(tmp_path, monkeypatch):
    folder, there = hub_model(tmp_path, "vit", weights=False), ["config.json", "tf_model.h5"]
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda _: there)
    with pytest.raises(UserError, match=r"hub:some/vit has its weights in tf_model.h5, which is not read"):
        hub_weights("hub:some/vit")
    there.pop()
    assert hub_weights("hub:some/vit") == {}


def test_what_draws_at_random_and_what_cannot_compute_in_half_precision(tmp_path):
    small = {"image_size": 32, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 2, 2]}
    windows = {"image_size": 32, "embed_dim": 16, "depths": [1], "num_heads": [2], "window_size": 4}
    for config in (
        ViTMAEConfig(**TOKENS, **MLP, image_size=32, patch_size=8),
        Swinv2Config(**windows),
        LevitConfig(**small, depths=[1, 1, 1], key_dim=[8, 8, 8]),
    ):
        config.save_pretrained(tmp_path / config.model_type)
    name = f"hub:{tmp_path / 'vit_mae'}"
    with pytest.raises(UserError, match="other features of the same image each time"):
        build_backbone(name, 32, 16)
    check_half_precision(build_backbone(name, 32, 16, mask_ratio=0.0))
    net = build_backbone(f"hub:{tmp_path / 'swinv2'}", 32, 16)
    with pytest.raises(UserError, match="type swinv2 cannot compute in half precision .*same dtype"):
        check_half_precision(net)
    with pytest.raises(UserError, match="type swinv2 cannot compute in half precision"):
        settings = {"backbone": f"hub:{tmp_path / 'swinv2'}", "image_size": 32, "embedding_size": 16}
        count_backbone(PlanSettings(1e3, 1e4, 1, batch_size=4, dtype="bf16", **settings))
    net = build_backbone(f"hub:{tmp_path / 'levit'}", 32, 16)
    before = copy.deepcopy(net.state_dict())
    check_half_precision(net)
    assert net.training and all(torch.equal(value, before[each]) for each, value in net.state_dict().items())
    freeze(net, ["encoder.*"])
    norms = [module for module in net.encoder.modules() if "BatchNorm1d" in type(module).__name__]
    assert norms and all(module.frozen for module in norms)


def test_a_damaged_configuration_is_told_in_words(tmp_path):
    net = build_backbone(f"hub:{hub_model(tmp_path / 'hub', 'vit')}", 32, 16)
    save_backbone(net, tmp_path / "saved")
    path = tmp_path / "saved" / "config.json"
    whole = json.loads(path.read_text())
    for key, value in {
        "image_std": [0.0, 1.0, 1.0],
        "image_mean": [0.5],
        "width": "x",
        "encoder": {"model_type": "vit", "hidden_act": "unheard_of"},
        "pooling": None,
    }.items():
        path.write_text(json.dumps(whole | {key: value}))
        with pytest.raises(UserError, match=r"The backbone in .* cannot be loaded"):
            load_model(str(tmp_path / "saved"))
    path.write_text(json.dumps(whole | {"encoder": whole["encoder"] | {"_attn_implementation": "some/code"}}))
    pixels = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(load_model(str(tmp_path / "saved"))(pixels).embeddings, net.eval()(pixels).embeddings)


def test_a_run_is_of_its_encoder_wherever_that_lies(tmp_path):
    def identity(folder, **overrides):
        config = parse_config(["--model.name", f"hub:{folder}"])
        module = build_backbone(config.model.name, 32, 16, **overrides)
        engine = SimpleNamespace(module=module, optimizer_name="SGD")
        return identity_of(config, engine, IdentityIndex(np.arange(2), np.arange(1), pa.array(["ann"])), "")

    here = hub_model(tmp_path / "here", "vit")
    there = shutil.copytree(here, tmp_path / "there")
    assert identity(here) == identity(there)
    assert identity(here) != identity(here, layer_norm_eps=1e-3)
    processor = there / "preprocessor_config.json"
    processor.write_text(json.dumps(json.loads(processor.read_text()) | {"image_mean": [0.5] * 3}))
    assert identity(here) != identity(there)
