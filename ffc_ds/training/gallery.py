"""The gallery net of FFC: a second net that follows the probe net by an exponential moving average kept in fp32."""

import torch
from torch import Tensor, nn


class Gallery:
    """G <- m * G + (1 - m) * P over parameters (arXiv 2105.10375, equation 2); buffers are G's own.

    `forward` runs the gallery net (its `module` holds the parameters); `probe` is the net to follow. Under ZeRO-3 both
    nets are sharded alike, and each rank averages its own part, without communication.

    Batch normalisation uses the statistics of the gallery's own batch, as the released code does.
    """

    def __init__(self, forward, module: nn.Module, probe: nn.Module, momentum: float):
        self.forward, self.module, self.momentum = forward, module, momentum
        module.train()
        self._of_probe = [owned(p) for p in probe.parameters()]
        self._of_gallery = [owned(p) for p in module.parameters()]
        # In fp32 this is the gallery's own memory; in half precision the average would drown in rounding.
        self.average = [p.float() for p in self._of_gallery]
        self._half = any(p.dtype != torch.float32 for p in self._of_gallery)

    @torch.no_grad()
    def follow(self) -> None:
        """One step of the average, before the step's passes."""
        probe = [p.float() for p in self._of_probe] if self._half else self._of_probe
        torch._foreach_lerp_(self.average, probe, 1 - self.momentum)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the net up to date with `average`."""
        if self._half:
            torch._foreach_copy_(self._of_gallery, self.average)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """[n, dim] for the net's input [n, 3, S, S], without gradient."""
        return self.forward(images).embeddings

    def state(self) -> dict[str, Tensor]:
        """fp32, flat: this rank's part of every parameter, and the buffers."""
        names = [name for name, _ in self.module.named_parameters()]
        state = {f"average.{name}": value.view(-1) for name, value in zip(names, self.average, strict=True)}
        return state | {f"buffer.{name}": value for name, value in self.module.named_buffers()}


def owned(parameter: nn.Parameter) -> Tensor:
    """The part of a parameter that this rank keeps: all of it, or its shard under ZeRO-3."""
    return parameter.ds_tensor.data if hasattr(parameter, "ds_tensor") else parameter.data
