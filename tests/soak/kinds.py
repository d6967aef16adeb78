"""Tiny runs of every head, which differ from rank count to rank count by rounding alone."""

from typing import NamedTuple

from tests.launched import TINY

HEADS = {
    "ffc": (),
    "ffc lru": ("--head.pool", "lru", "--head.gallery_momentum", "0.5", "--data.erase", "0.5"),
    "full_fc": ("--head.name", "full_fc", "--head.margin", "adaface", "--train.accumulation", "2"),
    "partial_fc": ("--head.name", "partial_fc", "--head.sample_rate", "0.3", "--head.sub_centers", "2"),
    "virtual_fc": ("--head.name", "virtual_fc", "--head.group_identities", "2", "--data.images_per_identity", "4"),
    "metric": ("--head.name", "metric", "--data.images_per_identity", "4"),
}
STEPS, CHECKPOINT_EVERY, VERIFY_EVERY = 12, 3, 4


class Kind(NamedTuple):
    """What a run is, apart from where it is and what happens to it."""

    head: str
    world: int
    stage: int

    def __str__(self) -> str:
        return f"{self.head}, {self.world} ranks, ZeRO-{self.stage}"

    def settings(self) -> list[str]:
        return [*TINY, *HEADS[self.head], "--deepspeed", f"ds_configs/zero{self.stage}.json"]


RHYTHM = (
    *("--train.steps", str(STEPS), "--train.checkpoint_every", str(CHECKPOINT_EVERY)),
    *("--eval.every", str(VERIFY_EVERY), "--train.max_refused_steps", "3"),
    *("--train.step_timeout", "0.4", "--train.open_timeout", "1"),
)
KINDS = [Kind(head, 1 + (number > 0), number % 4) for number, head in enumerate(HEADS)]
