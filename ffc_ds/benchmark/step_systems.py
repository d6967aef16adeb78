"""What takes the same step in different ways: a run of ffc_ds, the net in a bare loop, and what one writes at first."""

from collections.abc import Callable, Iterable
from functools import partial

import psutil
import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from torch import Tensor, nn

from ffc_ds.benchmark.head_cell import DIM, PROCESS, TENSORS, put_in_use
from ffc_ds.benchmark.step_cell import LEARNING_RATE, Batch, StepCell
from ffc_ds.distributed import world_size
from ffc_ds.errors import UserError
from ffc_ds.heads import build_head
from ffc_ds.models import build_backbone
from ffc_ds.training.compilation import compile_head, compile_nets
from ffc_ds.training.engine import Engine
from ffc_ds.training.process_group import same_again
from ffc_ds.training.report import backbone_settings

FEW = 1000  # classes of the bare loop
Mark = Callable[[str], None]


class Product:
    """The step of `Trainer`, on a batch that is there."""

    reproducible = True

    def __init__(self, cell: StepCell, device: torch.device):
        config, batches = cell.config, cell.micro_batches
        self.head = build_head(config.head, config.class_optim, cell.identities, DIM, batches, device, config.seed)
        slots = getattr(self.head, "capacity", 0)
        put_in_use(self.head, cell.identities, slots, device)
        set_seed(config.seed)
        momentum = (config.head.gallery_momentum or None) if self.head.wants_gallery else None
        self.engine = Engine(config, build_backbone(**backbone_settings(config)), momentum)
        shape = (cell.batch, 3, cell.image_size, cell.image_size)
        self.compiled = cell.compiled and self.engine.compile(shape, None)
        if self.compiled:
            compile_head(self.head)

    def step(self, batch: Batch, mark: Mark) -> bool:
        engine, gallery = self.engine, None
        if engine.gallery is not None:
            engine.gallery.follow()
            mark("gallery")
        probe = engine.features(batch.images).unflatten(0, (2, -1))
        mark("probe forward")
        if engine.gallery is not None:
            gallery = engine.gallery.features(batch.images).unflatten(0, (2, -1))
            mark("gallery")
        loss, _ = self.head.loss(probe, batch.identities, gallery)
        mark("head")
        engine.backward(loss)
        mark("backward")
        applied = engine.step(LEARNING_RATE)
        mark("optimizer")
        self.head.step(applied, LEARNING_RATE)
        mark("class optimizer")
        return applied


class Bare:
    """No less can be done with the net: its weights are of the type it computes in, nothing is checked or sent, and
    the loss is a softmax over few classes."""

    reproducible = False

    def __init__(self, cell: StepCell, device: torch.device, compiled: bool):
        set_seed(0)
        net = build_backbone(**backbone_settings(cell.config)).to(device)
        for parameter in net.parameters():  # buffers stay fp32, as in the product
            parameter.data = parameter.data.to(getattr(torch, cell.dtype))
        self.net, self.classes = net, nn.Linear(DIM, FEW, device=device)
        self.optimizer = sgd(net, self.classes.parameters(), cell)
        self.scaler = torch.amp.GradScaler(device.type, enabled=False)
        self.compiled = compiled and compiles(net, cell, device, getattr(torch, cell.dtype))

    def step(self, batch: Batch, mark: Mark) -> bool:
        features = self.net(batch.images).embeddings.float()
        mark("probe forward")
        loss = F.cross_entropy(self.classes(features), batch.labels % FEW)
        mark("head")
        return finish(loss, self.optimizer, mark, self.scaler)


class Plain(nn.Module):
    """What one writes without a framework: net and a dense softmax (CosFace, as in `PlainSoftmax`) in one module,
    torch's autocast where it is not fp32, DistributedDataParallel where there are several ranks."""

    reproducible = False

    def __init__(self, cell: StepCell, device: torch.device):
        super().__init__()
        set_seed(0)
        dtype = getattr(torch, cell.dtype)
        self.autocast = partial(torch.autocast, device.type, dtype, enabled=dtype != torch.float32)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.net = build_backbone(**backbone_settings(cell.config)).to(device)
        self.weights = nn.Parameter(torch.empty(cell.identities, DIM, device=device).normal_(std=0.01))
        self.optimizer = sgd(self.net, [self.weights], cell)
        with self.autocast():
            self.compiled = cell.compiled and compiles(self.net, cell, device, torch.float32)
        self.whole = [self]  # not a submodule of itself
        if world_size() > 1:
            self.whole = [nn.parallel.DistributedDataParallel(self, [device] if device.type == "cuda" else None)]

    def forward(self, images: Tensor, labels: Tensor, mark: Mark) -> Tensor:
        with self.autocast():
            features = self.net(images).embeddings.float()
            mark("probe forward")
            cosines = F.linear(F.normalize(features, dim=1), F.normalize(self.weights, dim=1)).float()
            cosines[torch.arange(len(labels), device=labels.device), labels] -= 0.4
            loss = F.cross_entropy(64 * cosines, labels)
        mark("head")
        return loss

    def step(self, batch: Batch, mark: Mark) -> bool:
        return finish(self.whole[0](batch.images.float(), batch.labels, mark), self.optimizer, mark, self.scaler)


def finish(loss: Tensor, optimizer: torch.optim.Optimizer, mark: Mark, scaler: torch.amp.GradScaler) -> bool:
    """What any loop does with its loss. Returns whether the weights were updated."""
    scale = scaler.get_scale()
    scaler.scale(loss).backward()
    mark("backward")
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    mark("optimizer")
    return scaler.get_scale() >= scale


def sgd(net: nn.Module, classes: Iterable[nn.Parameter], cell: StepCell) -> torch.optim.Optimizer:
    """As net and classes learn in the product."""
    optim, of_classes = cell.config.optim, cell.config.class_optim
    groups = [
        {"params": list(net.parameters()), "weight_decay": optim.weight_decay, "nesterov": True},
        {"params": list(classes), "weight_decay": of_classes.weight_decay},
    ]
    return torch.optim.SGD(groups, LEARNING_RATE, momentum=optim.momentum, fused=True)


def compiles(net: nn.Module, cell: StepCell, device: torch.device, dtype: torch.dtype) -> bool:
    shape = (cell.batch, 3, cell.image_size, cell.image_size)
    inputs = torch.zeros(shape, dtype=dtype, device=device).contiguous(memory_format=torch.channels_last)
    return compile_nets(net, None, net, inputs, None)


def refuse_plain(cell: StepCell, device: torch.device) -> None:
    """Raise UserError if the plain softmax is too large for the memory that is left."""
    tensors = TENSORS["plain"] + (cell.ranks > 1)  # DistributedDataParallel has a copy of the gradient
    numbers = tensors * cell.identities * DIM + 5 * cell.batch * cell.identities
    needed = 4 * numbers + PROCESS
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available // cell.ranks
    if needed > free:
        raise UserError(f"needs {needed / 2**30:,.1f} GiB on each rank")


def systems_of(cell: StepCell) -> dict[str, Callable]:
    """Each of them, to be built on a device, by name; the first one is what the others are held against."""
    bare = {"bare": partial(Bare, compiled=False)}
    if cell.compiled:
        bare["bare_compiled"] = partial(Bare, compiled=True)
    return {name: partial(build, cell) for name, build in {"product": Product, **bare, "plain": Plain}.items()}


def as_it_computes(system, device: torch.device) -> None:
    """Set up torch for a system: a run can be repeated, a loop that somebody writes takes what is fastest."""
    if device.type == "cuda":
        same_again(system.reproducible)
