"""What is wrong with the data of a run: images that have to be replaced, and steps that wait for images."""

import torch

from ffc_ds.config.settings import DataConfig
from ffc_ds.data.batch_checks import advice_on_waiting
from ffc_ds.data.training_faces import check_replaced
from ffc_ds.distributed import all_reduce, rank
from ffc_ds.progress import say


class DataWatch:
    """Counts and says it; all ranks call it alike.

    replaced: images of this rank that could not be read or decoded; of a run that goes on, rank 0 has those before.
    """

    def __init__(self, data: DataConfig):
        self._data, self.replaced = data, 0
        self._named, self._starved = set(), 0

    def note(self, replaced: list[str]) -> None:
        """These images of a batch were replaced: says of each once what stands in its place."""
        self.replaced += len(replaced)
        for what in replaced:
            if what not in self._named:
                self._named.add(what)
                say(what)

    def total(self, device: torch.device) -> int:
        """Replaced images of the whole run, on all ranks."""
        return int(all_reduce(torch.tensor(self.replaced, device=device)))

    def judge(self, total: int, steps: int, waited: float) -> None:
        """After so many steps with so many replaced images, of which the last ones waited this share of the time.
        Raises UserError on all ranks if too many were replaced."""
        advice = advice_on_waiting(waited, self._data.workers)
        self._starved += advice is not None
        if advice and self._starved == 2 and rank() == 0:  # the first time the workers may just have begun
            say(advice)
        check_replaced(total, steps * self._data.batch_size, self._data.max_replaced)
