"""A vision transformer for faces: transformers' `ViTModel` under the face field's embedding layer.

Dosovitskiy et al., ICLR 2021 (arXiv 2010.11929).
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, ViTConfig, ViTModel

from ffc_ds.errors import UserError
from ffc_ds.models.batch_norm import BatchNorm1d
from ffc_ds.models.output import FaceEmbedding


@strict
class FaceViTConfig(PreTrainedConfig):
    """Shape of a `FaceViT`.

    image_size: side of the square input, pixels; a multiple of patch_size.
    embedding_size: length of the embedding.
    patch_size: side of a patch, pixels.
    hidden_size: width of a token; a multiple of num_attention_heads.
    num_hidden_layers: number of transformer blocks.
    num_attention_heads: heads per block.
    intermediate_size: width of the hidden layer of each MLP.
    batch_norm: normalise the embedding over the batch. Without it the net has no batch statistics at all, and a run
        gives the same losses on any number of ranks.

    Raises UserError for values no network can be built from.
    """

    model_type = "ffc_vit"

    image_size: int = 112
    embedding_size: int = 512
    patch_size: int = 8
    hidden_size: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    intermediate_size: int = 1024
    batch_norm: bool = True

    def validate_architecture(self) -> None:
        for name in ("image_size", "embedding_size", "patch_size", "hidden_size", "num_hidden_layers",
                     "num_attention_heads", "intermediate_size"):  # fmt: skip
            if getattr(self, name) < 1:
                raise UserError(f"vit: {name} must be 1 or more, not {getattr(self, name)}.")
        if self.image_size % self.patch_size:
            raise UserError(f"vit: image_size {self.image_size} must be a multiple of patch_size {self.patch_size}.")
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"vit: hidden_size {self.hidden_size} must be a multiple of num_attention_heads "
                f"{self.num_attention_heads}."
            )


class FaceViT(PreTrainedModel):
    """Face images to embeddings.

    `forward(pixel_values)`: float [B, 3, image_size, image_size] in [-1, 1], of any float dtype, to `FaceEmbedding`.

    The embedding is a linear map of all tokens together, then BatchNorm, as on InsightFace's ViTs: an aligned face has
    its eyes and mouth always in the same patches, so weights per place are worth more than an average over places or a
    class token alone (a CNN flattens its last map for the same reason). BatchNorm takes away what all faces have in
    common, so cosines between strangers start near zero.
    """

    config_class = FaceViTConfig
    main_input_name = "pixel_values"

    def __init__(self, config: FaceViTConfig):
        super().__init__(config)
        vit_config = ViTConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            # A bias on the keys cancels in the softmax and would never get a gradient.
            qkv_bias=False,
        )
        tokens = (config.image_size // config.patch_size) ** 2 + 1
        self.vit = ViTModel(vit_config, add_pooling_layer=False)
        self.fc = nn.Linear(tokens * config.hidden_size, config.embedding_size, bias=not config.batch_norm)
        self.features = BatchNorm1d(config.embedding_size) if config.batch_norm else nn.Identity()
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> FaceEmbedding:
        tokens = self.vit(pixel_values).last_hidden_state
        return FaceEmbedding(embeddings=self.features(self.fc(tokens.flatten(1))))
