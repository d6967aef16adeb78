"""Tiny encoders of transformers with random weights, in folders as the hub has them."""

import json
from pathlib import Path

import torch
from transformers import (
    ConvNextV2Config,
    Dinov2Config,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    SiglipConfig,
    SwinConfig,
    ViTConfig,
)
from transformers.models.convnextv2.modeling_convnextv2 import ConvNextV2Model
from transformers.models.dinov2.modeling_dinov2 import Dinov2Model
from transformers.models.resnet.modeling_resnet import ResNetModel
from transformers.models.siglip.modeling_siglip import SiglipModel
from transformers.models.swin.modeling_swin import SwinModel
from transformers.models.vit.modeling_vit import ViTModel

TOKENS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MLP = {"intermediate_size": 32}
SIGLIP = {
    "vision_config": {**TOKENS, **MLP, "image_size": 32, "patch_size": 8},
    "text_config": {**TOKENS, **MLP, "vocab_size": 30, "max_position_embeddings": 8},
}
FAMILIES: dict[str, tuple[type[PreTrainedModel], PreTrainedConfig]] = {
    "vit": (ViTModel, ViTConfig(**TOKENS, **MLP, image_size=32, patch_size=8)),
    "dinov2": (Dinov2Model, Dinov2Config(**TOKENS, image_size=56, patch_size=8, mlp_ratio=1)),
    "swin": (
        SwinModel,
        SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
    ),
    "convnextv2": (ConvNextV2Model, ConvNextV2Config(image_size=32, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1])),
    "resnet": (ResNetModel, ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")),
    "siglip": (SiglipModel, SiglipConfig(**SIGLIP)),
}
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def hub_model(folder: Path, family: str, weights: bool = True) -> Path:
    """Write one, with the image processor of 32 pixels that it says it is used to."""
    kind, config = FAMILIES[family]
    torch.manual_seed(0)
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    (model if weights else config).save_pretrained(folder)
    processor = {"size": {"height": 32, "width": 32}, "image_mean": MEAN, "image_std": STD, "do_normalize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
