"""A net whose parameters are a moving average of another net's, kept in fp32 and sharded as that net is."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ffc_ds.distributed import all_gather, where_ranks_meet


class Follower:
    """F <- m * F + (1 - m) * P over parameters; buffers are what its kind makes of them.

    `forward` runs the net (its `module` holds the parameters); `probe` is the net to follow. Under ZeRO-3 both are
    sharded alike, and each rank averages its own part, without communication. `name` is its kind's in checkpoints.
    """

    name: str

    def __init__(self, forward, module: nn.Module, probe: nn.Module):
        self.forward, self.module = forward, module
        self._of_probe = [owned(p) for p in probe.parameters()]
        self._own = [owned(p) for p in module.parameters()]
        # In fp32 this is the net's own memory; in half precision the average would drown in rounding.
        self.average = [p.float() for p in self._own]
        self._half = any(p.dtype != torch.float32 for p in self._own)

    @torch.no_grad()
    def _move(self, share: float) -> None:
        """Go that share of the way to the probe. In half precision the net itself waits for `refresh`."""
        # With DeepSpeed's offload_param small ones may lie elsewhere.
        probe = [p.to(own) for p, own in zip(self._of_probe, self.average, strict=True)]
        torch._foreach_lerp_(self.average, probe, share)

    @torch.no_grad()
    def refresh(self) -> None:
        """Bring the net up to date with `average`."""
        if self._half:
            torch._foreach_copy_(self._own, self.average)

    def state(self) -> dict[str, Tensor]:
        """fp32, flat: this rank's part of every parameter, and the buffers."""
        names = [name for name, _ in self.module.named_parameters()]
        state = {f"average.{name}": value.view(-1) for name, value in zip(names, self.average, strict=True)}
        return state | {f"buffer.{name}": value for name, value in self.module.named_buffers()}

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Name and fp32 average of every parameter, one after another. Collective under ZeRO-3."""
        for (name, parameter), value in zip(self.module.named_parameters(), self.average, strict=True):
            if hasattr(parameter, "ds_tensor"):  # ZeRO-3 pads the last shards
                value = all_gather(where_ranks_meet(value)).flatten()[: parameter.ds_numel].view(parameter.ds_shape)
            yield name, value


def owned(parameter: nn.Parameter) -> Tensor:
    """The part of a parameter that this rank keeps: all of it, or its shard under ZeRO-3."""
    return parameter.ds_tensor.data if hasattr(parameter, "ds_tensor") else parameter.data
