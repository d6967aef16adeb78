"""iResNet, the residual network of InsightFace: pre-normalised basic blocks with PReLU and an unstrided stem.

ArcFace, Deng et al., CVPR 2019 (arXiv 1801.07698), after Deep Pyramidal Residual Networks, Han et al., CVPR 2017
(arXiv 1610.02915). Modules carry InsightFace's names, so the state dict of one of its trained nets loads as it is.
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

BLOCKS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 14, 3], 100: [3, 13, 30, 3], 200: [6, 26, 60, 6]}


@strict
class IResNetConfig(PreTrainedConfig):
    """Shape of an `IResNet`.

    image_size: side of the square input, pixels; at least 16, the stride of the network.
    embedding_size: length of the embedding.
    depth: 18, 34, 50, 100 or 200, or the numbers of blocks of the four stages.
    width: factor on the 64, 128, 256 and 512 channels of the stages.
    dropout: probability that a feature is dropped before the fully connected layer.

    Raises UserError for values no network can be built from.
    """

    model_type = "ffc_iresnet"

    image_size: int = 112
    embedding_size: int = 512
    depth: int | list[int] = 50
    width: int | float = 1.0
    dropout: int | float = 0.0

    def validate_architecture(self) -> None:
        if self.image_size < 16:
            raise UserError(f"iresnet: image_size {self.image_size} is too small, it must be 16 pixels or more.")
        if self.embedding_size < 1:
            raise UserError(f"iresnet: embedding_size must be 1 or more, not {self.embedding_size}.")
        if isinstance(self.depth, int) and self.depth not in BLOCKS:
            raise UserError(f"iresnet: depth {self.depth} is not one of {list(BLOCKS)}, nor four block counts.")
        if isinstance(self.depth, list) and (len(self.depth) != 4 or min(self.depth) < 1):
            raise UserError(f"iresnet: depth {self.depth} must be four block counts of 1 or more.")
        if self.width <= 0 or round(64 * self.width) < 1:
            raise UserError(f"iresnet: width {self.width} leaves no channel, it must be at least 1/64.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"iresnet: dropout must lie in [0, 1), not {self.dropout}.")


class IBasicBlock(nn.Module):
    """bn - conv3x3 - bn - prelu - conv3x3 (stride) - bn, added to the input or to its strided projection."""

    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.bn1 = BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(channels)
        self.prelu = nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = BatchNorm2d(channels)
        self.downsample = nn.Identity()
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(out)) + self.downsample(x)


def stage(in_channels: int, channels: int, blocks: int) -> nn.Sequential:
    """`blocks` residual blocks, the first of which halves the resolution (rounding up)."""
    first = IBasicBlock(in_channels, channels, stride=2)
    return nn.Sequential(first, *(IBasicBlock(channels, channels, stride=1) for _ in range(blocks - 1)))


class FixedScaleBatchNorm1d(BatchNorm1d):
    """BatchNorm whose scale stays 1; the shift is trained."""

    def __init__(self, channels: int):
        super().__init__(channels)
        # A buffer, not a frozen parameter: the state dict is the same, but from_pretrained unfreezes parameters.
        del self.weight
        self.register_buffer("weight", torch.ones(channels))


class IResNet(PreTrainedModel):
    """Face images to embeddings.

    `forward(pixel_values)`: float [B, 3, image_size, image_size] in [-1, 1], of any float dtype, to `FaceEmbedding`.

    Until it has been trained a little, a deep one is of use in training mode only: with the initial running statistics
    its activations grow from block to block and overflow fp32 from depth 50 or 100 on.
    """

    config_class = IResNetConfig
    main_input_name = "pixel_values"

    def __init__(self, config: IResNetConfig):
        super().__init__(config)
        blocks = BLOCKS[config.depth] if isinstance(config.depth, int) else config.depth
        c1, c2, c3, c4 = (round(channels * config.width) for channels in (64, 128, 256, 512))
        self.conv1 = nn.Conv2d(3, c1, 3, padding=1, bias=False)
        self.bn1 = BatchNorm2d(c1)
        self.prelu = nn.PReLU(c1)
        self.layer1 = stage(c1, c1, blocks[0])
        self.layer2 = stage(c1, c2, blocks[1])
        self.layer3 = stage(c2, c3, blocks[2])
        self.layer4 = stage(c3, c4, blocks[3])
        self.bn2 = BatchNorm2d(c4)
        self.dropout = nn.Dropout(config.dropout)
        self.fc = nn.Linear(c4 * math.ceil(config.image_size / 16) ** 2, config.embedding_size)
        self.features = FixedScaleBatchNorm1d(config.embedding_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.normal_(module.weight, std=0.1)
        elif isinstance(module, nn.PReLU):
            init.constant_(module.weight, 0.25)
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    def forward(self, pixel_values: torch.Tensor) -> FaceEmbedding:
        x = pixel_values.to(self.conv1.weight.dtype)
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        x = self.dropout(self.bn2(x))
        return FaceEmbedding(embeddings=self.features(self.fc(x.flatten(1))))
