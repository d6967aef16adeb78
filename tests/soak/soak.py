"""Rounds, one after another, for as long as there is time."""

import shutil
import time
from collections import Counter
from pathlib import Path
from random import Random

from ffc_ds.training.manifest import find_damage
from tests.soak.damage import damages_of, files_of
from tests.soak.kinds import STEPS, Kind
from tests.soak.rounds import Round, what_happens

STARTED = 6  # of so many rounds one is started as a user starts it, which takes several times as long


class Soak:
    """folder: for the runs. Those of rounds in which a promise was broken stay there."""

    def __init__(self, folder: Path, seed: int):
        self._folder, self._seed = folder, seed
        self._undisturbed: dict[Kind, Path] = {}
        self.happened, self.failed = Counter(), 0

    def round(self, number: int) -> None:
        """One run, to which one to four things happen."""
        rng = Random(f"{self._seed} {number}")
        forked = number % STARTED != STARTED - 1
        this = Round(self._folder / f"round-{number}", number, rng, forked=forked)
        chosen = rng.choices(what_happens(this.kind), k=rng.randint(1, 4))
        happenings = [(what, rng.choice(moments)) for what, moments in chosen]
        self.play(this, happenings, f"SEED={self._seed} ROUND={number}")

    def play(self, this: Round, happenings: list, again: str) -> None:
        begin = time.monotonic()
        this.go(happenings, self._end_of(this.kind))
        self.happened.update(this.happened)
        for trouble in this.troubles:
            print(f"BROKEN: {trouble}; again: {again}", flush=True)
        self.failed += bool(this.troubles)
        if not this.troubles:
            print(f"    as if nothing had happened, after {time.monotonic() - begin:.0f} s", flush=True)
            shutil.rmtree(this.folder)

    def damage_every_file(self) -> None:
        """In each way, one at a time: none may pass for what was written."""
        tried = 0
        for kind, run in self._undisturbed.items():
            checkpoint = run / "checkpoints" / f"step-{STEPS}"
            for file, how in [(each, how) for each in files_of(checkpoint) for how in damages_of(each)]:
                content, tried = file.read_bytes(), tried + 1
                how(file, Random(f"{self._seed} {tried}"))
                if find_damage(checkpoint) is None:
                    print(f"BROKEN: {kind}: {file} {how.__name__} is not found; again: SEED={self._seed}", flush=True)
                    self.failed += 1
                file.write_bytes(content)
        print(f"{tried} damages to every file of {len(self._undisturbed)} checkpoints", flush=True)

    def _end_of(self, kind: Kind) -> Path:
        if kind not in self._undisturbed:
            alone = Round(self._folder / f"undisturbed {kind}", -1, Random(0), kind)
            alone.finish()
            assert not alone.troubles, alone.troubles
            self._undisturbed[kind] = alone.run
        return self._undisturbed[kind]

    def summary(self) -> str:
        counts = "\n".join(f"{count:5} {name}" for name, count in sorted(self.happened.items()))
        return f"{counts}\n{self.happened.total():5} in all; {self.failed} runs did not keep what is promised"
