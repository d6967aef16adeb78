"""What is examined, and what is known of it so far."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ffc_ds.config.settings import Config
from ffc_ds.doctor.finding import Finding
from ffc_ds.planning.settings import PlanSettings


class Unmeasured(Exception):
    """A check needs what another one did not find."""


@dataclass
class Case:
    """The settings of a run and this rank's device; `heard`: by check what each rank measured, in rank order."""

    config: Config
    device: torch.device
    heard: dict[str, list] = field(default_factory=dict)

    def of(self, check: str) -> list:
        """What all ranks measured. Raises Unmeasured if one of them could not."""
        if check not in self.heard:
            raise Unmeasured(f"not measured: it needs what the check {check!r} did not find")
        return self.heard[check]

    @property
    def settings(self) -> PlanSettings:
        """What the settings say to a plan. Raises Unmeasured if they cannot be used."""
        return PlanSettings(**self.of("settings")[0])

    @property
    def hosts(self) -> list[str]:
        """The host of each rank."""
        return [each["host"] for each in self.of("ranks")]

    def name(self, rank: int) -> str:
        """What to call a rank in messages."""
        return f"rank {rank} on {self.hosts[rank]}" if "ranks" in self.heard else f"rank {rank}"

    def ranks_of_hosts(self) -> dict[str, list[int]]:
        """The ranks of each host."""
        found = {}
        for rank, host in enumerate(self.hosts):
            found.setdefault(host, []).append(rank)
        return found


class Check(NamedTuple):
    """`measure` is called by every rank at once and may use collectives; `judge` is given what each rank's returned
    (JSON), and may not. What they raise becomes the finding: a UserError, on all ranks or not, is a problem."""

    name: str
    measure: Callable[[Case], Any]
    judge: Callable[[Case, list], Finding]
    seconds: float = 60.0
