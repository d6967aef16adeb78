"""MobileFaceNet, one million weights for phones and for quick runs.

Chen, Liu, Gao and Han, CCBR 2018 (arXiv 1804.07573), table 1.
"""

import math

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from ffc_ds.errors import UserError
from ffc_ds.models.batch_norm import BatchNorm1d, BatchNorm2d
from ffc_ds.models.output import FaceEmbedding

# Expansion t, output channels c, repeats n, stride s of the first repeat.
BOTTLENECKS = [(2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1)]


@strict
class MobileFaceNetConfig(PreTrainedConfig):
    """Shape of a `MobileFaceNet`.

    image_size: side of the square input, pixels; at least 16, the stride of the network.
    embedding_size: length of the embedding (the paper uses 128).

    Raises UserError for values no network can be built from.
    """

    model_type = "ffc_mobilefacenet"

    image_size: int = 112
    embedding_size: int = 512

    def validate_architecture(self) -> None:
        if self.image_size < 16:
            raise UserError(f"mobilefacenet: image_size {self.image_size} is too small, it must be 16 pixels or more.")
        if self.embedding_size < 1:
            raise UserError(f"mobilefacenet: embedding_size must be 1 or more, not {self.embedding_size}.")


def conv_bn(
    in_channels: int, channels: int, kernel: int = 1, stride: int = 1, padding: int = 0, groups: int = 1
) -> nn.Sequential:
    """Convolution and BatchNorm, without a non-linearity."""
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, groups=groups, bias=False)
    return nn.Sequential(conv, BatchNorm2d(channels))


def conv_bn_prelu(in_channels: int, channels: int, **conv: int) -> nn.Sequential:
    return conv_bn(in_channels, channels, **conv).append(nn.PReLU(channels))


class Bottleneck(nn.Module):
    """Inverted residual: 1x1 expansion, depthwise 3x3 (stride), linear 1x1; added to the input where shapes allow."""

    def __init__(self, in_channels: int, channels: int, expansion: int, stride: int):
        super().__init__()
        hidden = expansion * in_channels
        self.expand = conv_bn_prelu(in_channels, hidden)
        self.depthwise = conv_bn_prelu(hidden, hidden, kernel=3, stride=stride, padding=1, groups=hidden)
        self.project = conv_bn(hidden, channels)
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


class MobileFaceNet(PreTrainedModel):
    """Face images to embeddings.

    `forward(pixel_values)`: float [B, 3, image_size, image_size] in [-1, 1], of any float dtype, to `FaceEmbedding`.
    The global depthwise convolution (GDConv), which weighs each place of the face by itself, spans the whole last map.
    """

    config_class = MobileFaceNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: MobileFaceNetConfig):
        super().__init__(config)
        self.stem = conv_bn_prelu(3, 64, kernel=3, stride=2, padding=1)
        self.depthwise = conv_bn_prelu(64, 64, kernel=3, padding=1, groups=64)
        bottlenecks, in_channels = [], 64
        for expansion, channels, repeats, stride in BOTTLENECKS:
            for i in range(repeats):
                bottlenecks.append(Bottleneck(in_channels, channels, expansion, stride if i == 0 else 1))
                in_channels = channels
        self.bottlenecks = nn.Sequential(*bottlenecks)
        self.expand = conv_bn_prelu(in_channels, 512)
        self.gdconv = conv_bn(512, 512, kernel=math.ceil(config.image_size / 16), groups=512)
        # The paper's linear 1x1 convolution: on a 1x1 map that is a matrix product.
        self.fc = nn.Linear(512, config.embedding_size, bias=False)
        self.features = BatchNorm1d(config.embedding_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            # Fan-in counts the inputs of a depthwise kernel rightly, fan-out does not.
            init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        elif isinstance(module, nn.PReLU):
            init.constant_(module.weight, 0.25)
        else:
            super()._init_weights(module)

    def forward(self, pixel_values: torch.Tensor) -> FaceEmbedding:
        x = pixel_values.to(self.fc.weight.dtype)
        x = self.bottlenecks(self.depthwise(self.stem(x)))
        x = self.gdconv(self.expand(x)).flatten(1)
        return FaceEmbedding(embeddings=self.features(self.fc(x)))
