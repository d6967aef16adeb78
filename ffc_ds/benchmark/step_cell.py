"""What a cell of the comparison by the whole step consists of: the settings of a run, and batches on the device."""

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ffc_ds.benchmark.head_cell import DIM
from ffc_ds.config.paths import find_file
from ffc_ds.config.settings import Config, DataConfig, HeadConfig, ModelConfig, OptimConfig
from ffc_ds.distributed import rank, to_device
from ffc_ds.heads import MicroBatches

HEADS = {name: HeadConfig(name) for name in ("full_fc", "partial_fc", "virtual_fc", "metric", "ffc")}
HEADS["ffc_lru"] = HeadConfig("ffc", pool="lru", gallery_momentum=0.99)
DS_CONFIGS = {"float32": "zero2", "bfloat16": "bf16", "float16": "fp16"}
LEARNING_RATE = 0.01  # pixels and labels are random: steps are to stay finite, and mean nothing
BATCHES = 16  # that return in turn


@dataclass(frozen=True)
class StepCell:
    """head: a key of `HEADS`; dtype: of the net, that is a key of `DS_CONFIGS`; head_dtype: of the class state; device:
    "cpu" or "cuda"; batch: images of a rank in a step, of both views; compiled: whether the nets are; overrides: of
    the model, as `ModelConfig` has them."""

    head: str
    identities: int
    ranks: int
    dtype: str
    head_dtype: str
    device: str
    model: str
    image_size: int
    batch: int
    compiled: bool
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        types = self.dtype if self.head_dtype == "float32" else f"{self.dtype}-{self.head_dtype}"
        overrides = [re.sub(r"\W+", ".", f"{key}{value}").strip(".") for key, value in self.overrides.items()]
        model = "-".join([self.model, *overrides])
        net = f"{model}-{self.image_size}px-batch{self.batch}{'-compiled' * self.compiled}"
        return f"{self.head}-{self.identities}-ranks{self.ranks}-{types}-{self.device}-{net}"

    @property
    def config(self) -> Config:
        """Of a run that takes such steps."""
        head = HeadConfig(**vars(HEADS[self.head]) | {"dtype": self.head_dtype})
        return Config(
            deepspeed=find_file(f"ds_configs/{DS_CONFIGS[self.dtype]}.json"),
            data=DataConfig(batch_size=self.images),
            model=ModelConfig(self.model, self.image_size, DIM, self.overrides),
            head=head,
            optim=OptimConfig(lr=LEARNING_RATE),
        )

    @property
    def images(self) -> int:
        """Of a step, on all ranks."""
        return self.batch * self.ranks

    @property
    def micro_batches(self) -> MicroBatches:
        rows = self.images // 2
        return MicroBatches(rows, rows if self.config.loader == "id" else 2 * rows)


@dataclass(frozen=True)
class Batch:
    """images: [batch, 3, S, S] of this rank, channels-last, in [-1, 1]; identities: int64 [2, rows of all ranks] on the
    host, as heads take them; labels: int64 [batch], those of `images`, on the device."""

    images: torch.Tensor
    identities: np.ndarray
    labels: torch.Tensor


def batches_of(cell: StepCell, device: torch.device) -> list[Batch]:
    """With as many images of an identity as the head's loader would bring; the pixels are the same in all."""
    generator = torch.Generator().manual_seed(rank())
    pixels = torch.rand(cell.batch, 3, cell.image_size, cell.image_size, generator=generator).mul_(2).sub_(1)
    images = pixels.to(device, getattr(torch, cell.dtype)).contiguous(memory_format=torch.channels_last)
    rows, own = cell.images // 2, cell.batch // 2
    paired = {"id": rows, "dual": 2 * rows // 3, "instance": 0}[cell.config.loader]
    batches = []
    for number in range(BATCHES):
        identities = np.random.default_rng(number).integers(0, cell.identities, (2, rows))
        identities[1, :paired] = identities[0, :paired]
        labels = identities[:, rank() * own : (rank() + 1) * own]
        batches.append(Batch(images, identities, to_device(labels.reshape(-1), device)))
    return batches
