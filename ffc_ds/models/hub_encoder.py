"""Any vision encoder of transformers under the face field's embedding layer."""

import math
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from ffc_ds.errors import UserError
from ffc_ds.models.batch_norm import BatchNorm1d, BatchNorm2d
from ffc_ds.models.output import FaceEmbedding

POOLINGS = ("class", "mean", "spatial")
ATTENTION = "attn_implementation"
OWN_BATCH_NORM = {nn.BatchNorm1d: BatchNorm1d, nn.BatchNorm2d: BatchNorm2d}


@strict
class HubEncoderConfig(PreTrainedConfig):
    """Shape of a `HubEncoder`.

    image_size: side of the square input, pixels; a multiple of the encoder's patch_size, where it has one.
    embedding_size: length of the embedding.
    encoder: the encoder's own configuration, with its model_type.
    width: length of what it makes of a place, or of a token.
    pooling: class (the first token), mean (of all tokens), or spatial (what the encoder itself makes of its last map,
        or the mean over it).
    image_mean, image_std: what the encoder's own image processor takes off values of 0 to 1, and divides them by.
    batch_norm: normalise the embedding over the batch.

    Raises UserError for values no network can be built from.
    """

    model_type = "ffc_hub_encoder"

    image_size: int = 224
    embedding_size: int = 512
    encoder: dict[str, Any] | None = None
    width: int = 768
    pooling: str = "class"
    image_mean: list[float] | None = None
    image_std: list[float] | None = None
    batch_norm: bool = True

    def validate_architecture(self) -> None:
        if self.image_size < 1 or self.embedding_size < 1:
            raise UserError("image_size and embedding_size must be 1 or more.")
        if self.pooling not in POOLINGS:
            raise UserError(f"pooling {self.pooling} is none of {', '.join(POOLINGS)}.")
        if self.encoder is not None and "model_type" not in self.encoder:
            raise UserError("encoder must be a configuration with its model_type.")
        patch = (self.encoder or {}).get("patch_size")
        if isinstance(patch, int) and patch > 0 and (unseen := self.image_size % patch):
            smaller = self.image_size - unseen
            raise UserError(
                f"image_size {self.image_size} is no multiple of the encoder's patch_size {patch}: it would not see "
                f"the last {unseen} rows and columns. {f'{smaller} or ' * (smaller > 0)}{smaller + patch} is one."
            )
        for key in ("image_mean", "image_std"):
            least = 0 if key == "image_std" else -math.inf
            if (value := getattr(self, key)) is not None and not (
                len(value) == 3 and all(least < each < math.inf for each in value)
            ):
                raise UserError(f"{key} is {value}; it must be three numbers, and image_std above 0.")


class HubEncoder(PreTrainedModel):
    """Face images to embeddings.

    `forward(pixel_values)`: float [B, 3, image_size, image_size] in [-1, 1], of any float dtype, to `FaceEmbedding`. As
    all backbones it takes [-1, 1], and gives its encoder what that is used to, so that whoever runs one, an ONNX file
    too, runs all. The embedding is a linear map of what is pooled, then BatchNorm.
    """

    config_class = HubEncoderConfig
    main_input_name = "pixel_values"

    def __init__(self, config: HubEncoderConfig):
        super().__init__(config)
        self.encoder = make_encoder(config.encoder or {"model_type": "vit"})
        mean, std = (torch.tensor(each or [0.5] * 3) for each in (config.image_mean, config.image_std))
        self.register_buffer("input_scale", (0.5 / std).view(3, 1, 1))
        self.register_buffer("input_shift", ((0.5 - mean) / std).view(3, 1, 1))
        self.fc = nn.Linear(config.width, config.embedding_size, bias=not config.batch_norm)
        self.features = BatchNorm1d(config.embedding_size) if config.batch_norm else nn.Identity()
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> FaceEmbedding:
        x = (pixel_values * self.input_scale + self.input_shift).to(self.fc.weight.dtype)
        pooled = pool(self.encoder(pixel_values=x), self.config.pooling)
        return FaceEmbedding(embeddings=self.features(self.fc(pooled)))


def make_encoder(config: dict[str, Any]) -> PreTrainedModel:
    """The encoder of a configuration, with initial weights, in fp32."""
    config = AutoConfig.for_model(**_without_attention(config))
    encoder = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    for module in encoder.modules():
        # torch's cannot be in half precision with statistics in fp32
        module.__class__ = OWN_BATCH_NORM.get(type(module), type(module))
    return encoder


def _without_attention(config: Any) -> Any:
    """How attention is computed is not for a file to say: it may name code of the hub."""
    if not isinstance(config, dict):
        return config
    return {key: _without_attention(value) for key, value in config.items() if not str(key).endswith(ATTENTION)}


def pool(output, pooling: str) -> torch.Tensor:
    """[B, width] of an encoder's output."""
    last = output.last_hidden_state
    if pooling == "class":
        return last[:, 0]
    if pooling == "mean":
        return last.mean(1)
    pooled = getattr(output, "pooler_output", None)
    return last.mean((2, 3)) if pooled is None else pooled.flatten(1)
