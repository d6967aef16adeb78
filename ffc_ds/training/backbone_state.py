"""Weights and optimizer state of the probe net by the names of its parameters, whole: for any ZeRO stage and ranks.

DeepSpeed keeps them as flat parts that are cut for a stage and a number of ranks, and saves them so. Here each
parameter is put together, in fp32, and one rank after another keeps one for its file; a load takes its parts of them.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import deepspeed
import torch
from deepspeed.utils import (  # all of them take None for the weight itself
    safe_get_full_optimizer_state,
    safe_set_full_optimizer_state,
    safe_set_local_optimizer_state,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ffc_ds.distributed import rank, to_host, together, world_size
from ffc_ds.errors import UserError
from ffc_ds.training.manifest import Writer

WEIGHT, BUFFER = OF_NET = ("weight", "buffer")
SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")  # fp16's, where it changes
STEPS = "step"  # what optimizers call the steps that they have done, for a parameter or for all


class BackboneCopy(NamedTuple):
    """In host memory, this rank's turns of weights and optimizer state, and what is one for all parameters."""

    tensors: dict[str, Tensor]
    numbers: dict

    def write(self, writer: Writer) -> None:
        """Write backbone/part-RANK.safetensors in the folder of `writer`."""
        writer.make_folder(writer.folder / "backbone")
        with writer.open(writer.folder / "backbone" / f"part-{rank()}.safetensors") as file:
            file.write(save(self.tensors, {"numbers": json.dumps(self.numbers)}))


def read_net(folder: Path) -> dict[str, Tensor]:
    """Parameters (fp32) and buffers of the net in folder/backbone, by name. Raises UserError if they are no copy."""
    found = {}
    for path in sorted((folder / "backbone").glob("part-*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 (it is no dict)
                    kind, _, name = key.partition(".")
                    if kind in OF_NET:
                        found[name] = file.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be loaded: {error}.") from error
    return found


class BackboneState:
    """That of the net of a DeepSpeedEngine. All ranks call each method alike."""

    def __init__(self, engine):
        self._net, self._wrapper, self._optimizer = engine.module, engine.optimizer, engine.basic_optimizer
        self._zero = any(hasattr(p, "ds_id") or hasattr(p, "_hp_mapping") for p in self._net.parameters())
        # The tensors that the optimizer knows. Between two steps ZeRO-3 hides them from it.
        self._parts = getattr(self._wrapper, "fp32_partitioned_groups_flat", None) or [
            part for group in self._optimizer.param_groups for part in group["params"]
        ]

    def copy(self) -> BackboneCopy:
        self._link()
        kept = {}
        for number, (entry, parameter, key) in enumerate(self._entries(self._keys())):
            value = self._whole(parameter, key)
            if number % world_size() == rank():
                kept[entry] = to_host(value.float())
        if rank() == 0:
            kept |= {f"{BUFFER}.{name}": to_host(value) for name, value in self._net.named_buffers()}
        return BackboneCopy(kept, self._numbers())

    def load(self, folder: Path) -> None:
        """Take over folder/backbone. Raises UserError on all ranks if it is not there, or is of another net."""
        folder = folder / "backbone"
        with ExitStack() as files:
            places, numbers = together(lambda: self._open(folder, files))
            self._start_state(numbers["keys"])
            for entry, parameter, key in self._entries(numbers["keys"]):
                self._set(parameter, places[entry].get_tensor(entry).to(parameter.device), key)
            for name, buffer in self._net.named_buffers():
                buffer.copy_(places[f"{BUFFER}.{name}"].get_tensor(f"{BUFFER}.{name}"))
        self._set_numbers(numbers)

    def _open(self, folder: Path, files: ExitStack) -> tuple[dict, dict]:
        """In which file each tensor is, and the numbers. Raises UserError unless all are there, in the right shape."""
        places, numbers = {}, None
        try:
            for path in sorted(folder.glob("part-*.safetensors")):
                file = files.enter_context(safe_open(path, "pt"))
                places |= dict.fromkeys(file.keys(), file)
                numbers = json.loads(file.metadata()["numbers"])
        except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
            raise UserError(f"{path} cannot be loaded: {error}.") from error
        if numbers is None:
            raise UserError(f"{folder} is missing or incomplete; choose another checkpoint.")
        shapes = {e: getattr(p, "ds_shape", p.shape) for e, p, _ in self._entries(numbers["keys"])}
        shapes |= {f"{BUFFER}.{name}": buffer.shape for name, buffer in self._net.named_buffers()}
        for entry, shape in shapes.items():
            found = places[entry].get_slice(entry).get_shape() if entry in places else None
            if found != list(shape):
                raise UserError(f"{folder} cannot be loaded: {entry} is {found or 'not there'}, not {list(shape)}.")
        return places, numbers

    def _entries(self, keys: list[str]) -> Iterator[tuple[str, nn.Parameter, str]]:
        """Name in the files, parameter, and which of its tensors: its weight, or a key of the optimizer's state."""
        for name, parameter in self._net.named_parameters():
            for key in (WEIGHT, *keys) if parameter.requires_grad else (WEIGHT,):
                yield f"{key}.{name}", parameter, key

    def _link(self) -> None:
        """DeepSpeed gets at the optimizer's state by parameter once a step has made it; it may have been made anew."""
        if hasattr(self._wrapper, "_hp_optimizer_states_linked"):
            self._wrapper._hp_optimizer_states_linked = False
            self._wrapper._lazy_init_hp_params_optimizer_state()

    def _keys(self) -> list[str]:
        """What the optimizer keeps of the shape of a parameter: nothing before its first step."""
        known = [self._optimizer.state.get(part, {}) for part in self._parts]
        return sorted({key for state in known for key, value in state.items() if _is_of_shape(key, value)})

    def _start_state(self, keys: list[str]) -> None:
        """Make the state that will be written to. Zeros are to every optimizer what none is; what it has is cleared."""
        for part in self._parts:
            state = self._optimizer.state[part]
            for key in {*keys, *(key for key, value in state.items() if _is_of_shape(key, value))}:
                if isinstance(state.get(key), Tensor):
                    state[key].zero_()
                else:
                    state[key] = torch.zeros_like(part)
        self._link()

    def _whole(self, parameter: nn.Parameter, key: str) -> Tensor:
        """fp32, in the shape of the parameter."""
        if not parameter.requires_grad:
            with deepspeed.zero.GatheredParameters(parameter, enabled=hasattr(parameter, "ds_id")):
                return parameter.detach().clone()
        if self._zero:
            return safe_get_full_optimizer_state(parameter, None if key == WEIGHT else key)
        return parameter if key == WEIGHT else self._optimizer.state[parameter].get(key, torch.zeros_like(parameter))

    def _set(self, parameter: nn.Parameter, value: Tensor, key: str) -> None:
        if key == WEIGHT:  # what the net computes with
            with deepspeed.zero.GatheredParameters(parameter, modifier_rank=0, enabled=hasattr(parameter, "ds_id")):
                parameter.data.copy_(value)
        if not parameter.requires_grad:
            return
        of_zero = None if key == WEIGHT else key
        if hasattr(parameter, "ds_id"):
            safe_set_local_optimizer_state(parameter, _shard(parameter, value), of_zero)
        elif self._zero:
            safe_set_full_optimizer_state(parameter, value, of_zero)
        elif key != WEIGHT:
            self._optimizer.state[parameter][key].copy_(value)

    def _numbers(self) -> dict:
        """What is one for all parameters (JSON)."""
        steps = [self._optimizer.state.get(part, {}).get(STEPS) for part in self._parts]
        return {
            "keys": self._keys(),
            # DeepSpeed's fused Adam counts in the last parameter alone
            "steps": max((int(count) for count in steps if count is not None), default=None),
            "scale": {name: getattr(each, name) for each in self._scaler() for name in SCALE},
        }

    def _set_numbers(self, numbers: dict) -> None:
        for part in self._parts:
            state = self._optimizer.state[part]
            if isinstance(state.get(STEPS), Tensor):
                state[STEPS].fill_(numbers["steps"] or 0)
            elif STEPS in state or numbers["steps"] is not None:
                state[STEPS] = self._steps(numbers["steps"] or 0, part.device)
        for scaler in self._scaler():
            for name, value in numbers["scale"].items():
                setattr(scaler, name, value)

    def _steps(self, count: int, device: torch.device) -> int | Tensor:
        """As the optimizer counts its steps: torch's by a tensor, which its fused ones want beside the weights."""
        if not isinstance(self._optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            return count
        return torch.tensor(float(count), device=device if self._optimizer.defaults["fused"] else "cpu")

    def _scaler(self) -> list:
        """Who holds fp16's loss scale, if it changes."""
        scaler = getattr(self._wrapper, "loss_scaler", None)
        return [scaler] if getattr(scaler, "dynamic", False) else []


def _is_of_shape(key: str, value) -> bool:
    return key != STEPS and isinstance(value, Tensor)


def _shard(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """This rank's part of a parameter under ZeRO-3, which pads the last ones."""
    size = parameter.ds_tensor.numel()
    padded = torch.nn.functional.pad(value.flatten(), (0, size * world_size() - value.numel()))
    return padded[rank() * size : (rank() + 1) * size]
