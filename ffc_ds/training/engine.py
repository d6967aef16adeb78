"""DeepSpeed's side of a run: the sharded backbone, how it takes a step, and the nets that follow it."""

import copy
import math
from collections.abc import Collection, Iterator
from pathlib import Path

import deepspeed
import torch
from torch import Tensor, nn

from ffc_ds.config.settings import Config
from ffc_ds.distributed import all_reduce, together, world_size
from ffc_ds.models.hub_encoder import HubEncoder
from ffc_ds.models.hub_source import check_half_precision
from ffc_ds.training.backbone_optimizer import LR_FACTOR, backbone_optimizer, parameter_groups
from ffc_ds.training.backbone_state import BackboneCopy, BackboneState
from ffc_ds.training.compilation import compile_nets
from ffc_ds.training.deepspeed_settings import dtype_of, read_deepspeed_config, refusals
from ffc_ds.training.follower import Follower
from ffc_ds.training.gallery import Gallery
from ffc_ds.training.gradients_at_once import deal_with_all_at_once
from ffc_ds.training.weight_average import WeightAverage

CHECKED = 8  # parameters, about
BITS = {2: torch.int16, 4: torch.int32}  # by bytes


class Engine:
    """The probe net under DeepSpeed, and the nets that follow it: the gallery net if `gallery_momentum` is given, and
    the average of the weights if `train.average` asks for it.

    from_weights: names of the parameters that learn at `optim.backbone_lr_factor`.
    head_only: the steps that begin now leave all nets as they are, with their buffers.
    """

    def __init__(
        self,
        config: Config,
        model: nn.Module,
        gallery_momentum: float | None = None,
        from_weights: Collection[str] = (),
    ):
        settings = together(lambda: read_deepspeed_config(config))
        self.zero_stage = settings.get("zero_optimization", {}).get("stage", 0)
        self.dtype, self._clip = dtype_of(settings), settings["gradient_clipping"]
        self._plain = self.zero_stage == 0  # which is fp32
        if self.dtype != torch.float32 and isinstance(model, HubEncoder):
            together(lambda: check_half_precision(model))
        if self._plain:
            settings["gradient_clipping"] = 0.0  # DeepSpeed would clip gradients that are no longer there
        momenta = {Gallery: gallery_momentum, WeightAverage: config.train.average or None}
        copies = {kind: copy.deepcopy(model).requires_grad_(False) for kind in momenta if momenta[kind] is not None}
        parameters = parameter_groups(model, from_weights, config.optim.backbone_lr_factor)
        optimizer = None if "optimizer" in settings else backbone_optimizer(config, parameters)
        with refusals(config.deepspeed):
            self._engine, *_ = deepspeed.initialize(
                model=model, model_parameters=parameters, optimizer=optimizer, config=settings
            )
        self._state = BackboneState(self._engine)
        self.module, self.device = self._engine.module, self._engine.device
        if hasattr(self._engine.optimizer, "check_grad_overflow"):
            # ZeRO would apply a non-finite gradient unless it computes in fp16.
            self._engine.optimizer.check_grad_overflow = True
        deal_with_all_at_once(self._engine.optimizer)
        self._plain_norm = 0.0
        self._keep_refusing()
        followers = {kind: self._make_follower(net, settings, kind, momenta[kind]) for kind, net in copies.items()}
        self.gallery, self.average = followers.get(Gallery), followers.get(WeightAverage)
        self.followers = list(followers.values())
        nets = [self.module, *(follower.module for follower in self.followers)]
        buffers = [buffer for net in nets for buffer in net.buffers()]
        kinds = [[each for each in buffers if each.is_floating_point() == floats] for floats in (True, False)]
        self._buffers = [kind for kind in kinds if kind]
        self._buffers_before = [[each.clone() for each in kind] for kind in self._buffers]  # at the start of the step
        self._at_start = True
        self.head_only, self._leaf, self._finite = config.train.head_only_steps > 0, None, []

    def _make_follower(self, module, settings, kind, momentum) -> Follower:
        forward = module.to(self.device)
        for parameter in module.parameters():  # buffers stay fp32, as DeepSpeed leaves those of the probe
            parameter.data = parameter.data.to(self.dtype)
        if self.zero_stage == 3:
            # The average changes the shards between two forwards: nothing may stay gathered, or be gathered by a
            # stream that does not wait for it.
            fresh = {"stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0, "overlap_comm": False}
            zero = settings["zero_optimization"] | fresh
            settings = {key: value for key, value in settings.items() if key != "optimizer"}
            forward, *_ = deepspeed.initialize(model=module, config=settings | {"zero_optimization": zero})
            module = forward.module
        return kind(forward, module, self.module, momentum)

    def compile(self, shape: tuple[int, ...], evaluated: tuple[int, ...] | None) -> bool:
        """Compile the nets for training on inputs of `shape` [n, 3, S, S] and verification on those of `evaluated`,
        before the first step; not for ZeRO-3. Returns whether they are now."""
        gallery = self.gallery and self.gallery.module
        inputs = self.blank(shape), evaluated and self.blank(evaluated)
        return compile_nets(self.module, gallery, self.trained(), *inputs)

    def blank(self, shape: tuple[int, ...]) -> Tensor:
        """Zeros as the nets take them."""
        zeros = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return zeros.contiguous(memory_format=torch.channels_last)

    def features(self, images: Tensor) -> Tensor:
        """[n, dim] of the probe net for its input [n, 3, S, S], with gradient. Called before the gallery's."""
        if self._at_start:
            _copy_all(self._buffers, self._buffers_before)
            self._at_start = False
        if not self.head_only:
            return self._engine(images).embeddings
        self._leaf = self._fixed(images).requires_grad_()
        return self._leaf

    @torch.no_grad()
    def gallery_features(self, images: Tensor) -> Tensor:
        """The same of the gallery net, or of the probe net if that is its own gallery, without gradient."""
        features = self._fixed(images) if self.gallery is None else self.gallery.features(images)
        if self.head_only:
            _copy_all(self._buffers_before, self._buffers)
        return features

    @torch.no_grad()
    def _fixed(self, images: Tensor) -> Tensor:
        with torch.compiler.set_stance("force_eager"):  # what is compiled is for training
            return self._engine(images).embeddings

    def backward(self, loss: Tensor) -> None:
        """Backward of one micro-batch, scaled and reduced as DeepSpeed does. A loss that is not finite makes gradients
        that are not, so that the step is refused, without the host having to look."""
        if self.head_only:
            loss.backward()
            self._finite.append(loss.detach().isfinite() & self._leaf.grad.isfinite().all())
        else:
            self._engine.backward(loss * (loss.detach() * 0 + 1))

    def step(self, learning_rate: float) -> bool:
        """Close a micro-batch; at the last one of a step update the weights. False if that was refused, on all ranks
        alike, because a loss or a gradient was not finite."""
        if self.head_only:
            return self._step_without_backbone()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate * group.get(LR_FACTOR, 1.0)
        finite = True
        if self._plain and self._engine.is_gradient_accumulation_boundary():
            finite = self._clip_or_drop_gradients()
        boundary = self._engine.is_gradient_accumulation_boundary()
        self._engine.step()
        applied = finite and self._engine.was_step_applied()
        if boundary:
            if not applied:  # the statistics of batch normalisation have seen what made the step fail
                _copy_all(self._buffers_before, self._buffers)
            self._at_start = True
        return applied

    def _step_without_backbone(self) -> bool:
        """As `step`; DeepSpeed does not get to know of such a step, and so counts its micro-batches rightly."""
        if len(self._finite) < self._engine.gradient_accumulation_steps():
            return True
        broken = all_reduce(1.0 - torch.stack(self._finite).all().float())
        self._finite.clear()
        _copy_all(self._buffers_before, self._buffers)
        self._at_start = True
        return not broken

    def _keep_refusing(self):
        """At fp16's smallest loss scale, too, DeepSpeed shall refuse a step rather than end the run."""
        if hasattr(self._engine.optimizer, "loss_scaler"):
            self._engine.optimizer.loss_scaler.raise_error_at_min_scale = False

    def checksum(self) -> int:
        """A number on which all ranks must agree: of some weights of the probe net, where each rank has it whole."""
        if self.zero_stage == 3:
            return 0
        parameters = list(self.module.parameters())
        some = parameters[:: max(1, len(parameters) // CHECKED)]
        bits = [each.detach().view(BITS[each.element_size()]).long().sum() for each in some]
        return int(torch.stack(bits).sum())

    @property
    def looks_for_scale(self) -> bool:
        """Whether fp16's loss scale can still fall: a step that is refused meanwhile says nothing about the run."""
        scaler = getattr(self._engine.optimizer, "loss_scaler", None)
        return scaler is not None and scaler.dynamic and scaler.cur_scale > scaler.min_scale

    def _clip_or_drop_gradients(self) -> bool:
        """What ZeRO does otherwise. False if they are not finite."""
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        self._plain_norm = norm.item()
        if not math.isfinite(self._plain_norm):
            self.module.zero_grad(set_to_none=True)
            return False
        if self._clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._clip, norm)
        return True

    @property
    def optimizer_name(self) -> str:
        return type(self._engine.basic_optimizer).__name__

    @property
    def gradient_norm(self) -> float:
        """Norm of the last step's gradient before clipping, over all ranks; infinite if it was refused."""
        return self._plain_norm if self._plain else float(self._engine.get_global_grad_norm() or 0.0)

    def average_buffers(self) -> None:
        """Make the running statistics of batch normalisation those of all ranks: their mean, and exactly the same where
        they are equal, which fp64 is for."""
        for buffer in [each for kind in self._buffers for each in kind]:
            if buffer.is_floating_point():
                buffer.copy_(all_reduce(buffer.double()).div_(world_size()))

    def copy(self) -> BackboneCopy:
        """This rank's part of weights and optimizer state of the probe net. All ranks must call."""
        return self._state.copy()

    def load(self, folder: Path) -> None:
        """Take over what a copy wrote, on any ranks under any ZeRO stage. Raises UserError, on all ranks, if it is not
        there or does not fit."""
        self._state.load(folder)

    def trained(self) -> nn.Module:
        """The net that is verified and handed on: the average of the weights, if there is one, or the probe net."""
        if self.average is None:
            return self.module
        self.average.refresh()
        return self.average.module

    def weights(self) -> dict[str, Tensor]:
        """That net whole, as a state dict in host memory, on rank 0; empty on the others. All ranks must call. An
        average is in fp32 whatever the compute type."""
        gathered = {}
        for name, value in self._whole() if self.average is None else self.average.whole():
            if self._engine.global_rank == 0:
                gathered[name] = value.detach().cpu().clone()
        if self._engine.global_rank == 0:
            gathered |= {name: buffer.detach().cpu().clone() for name, buffer in self.trained().named_buffers()}
        return gathered

    def _whole(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.module.named_parameters():
            with deepspeed.zero.GatheredParameters(parameter, enabled=self.zero_stage == 3):
                yield name, parameter


def _copy_all(sources: list[list[Tensor]], targets: list[list[Tensor]]) -> None:
    """One launch for all floats and one for all counts, where a copy each would be hundreds."""
    for source, target in zip(sources, targets, strict=True):
        torch._foreach_copy_(target, source)
