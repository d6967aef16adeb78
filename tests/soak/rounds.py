"""A run to which things happen: it is started again until it has finished, and must then be what it would have been."""

import re
import shutil
from pathlib import Path
from random import Random

from ffc_ds.training.checkpoints import complete
from ffc_ds.training.finished import is_finished
from tests.soak.damage import damages_of, files_of
from tests.soak.ends import differences
from tests.soak.faults import FAULTS, Fault
from tests.soak.kinds import KINDS, STEPS, Kind
from tests.soak.life import Life
from tests.soak.moments import wait_for

PATIENCE = 120.0  # seconds until all is gone, on a machine that has other things to do
DAMAGE, DIVERGENCE = "a damaged checkpoint", "NaN for ever"


def what_happens(kind: Kind) -> list[tuple[Fault | str, tuple[str | None, ...]]]:
    """To runs of this kind, and when; what is rare among the faults is there more than once."""
    faults = [(fault, fault.moments) for fault in FAULTS if fault.ranks <= kind.world]
    return faults + [(DAMAGE, (None,))] * 4 + [(DIVERGENCE, (None,))] * 2


class Round:
    """One run. troubles: what it promised and did not keep."""

    def __init__(self, folder: Path, number: int, rng: Random, kind: Kind | None = None, forked: bool = True):
        self.folder, self._number, self._rng = folder, number, rng
        self.kind = kind or rng.choice(KINDS)
        self.run, self._forked = folder / "run", forked
        self._lives, self._damaged = 0, None
        self.troubles, self.happened = [], []

    def go(self, happenings: list[tuple[Fault | str, str]], undisturbed: Path) -> None:
        """Have things happen to the run, each at its moment, then let it finish and compare it with `undisturbed`."""
        for what, moment in happenings:
            if is_finished(self.run):
                break
            if what == DAMAGE:
                self._be_damaged()
            elif what == DIVERGENCE:
                self._diverge()
            else:
                self._suffer(what, moment)
        self.finish()
        if not self.troubles and (found := differences(self.run, undisturbed)):
            self.troubles.append(f"not what it would have been: {', '.join(found)}; see {self.run}")

    def finish(self) -> None:
        """Without anything that happens."""
        life = self._live("--resume", "auto")
        self._end(life)
        if life.code() != 0 or not is_finished(self.run):
            self._complain(life, f"it does not come to its end: exit code {life.code()}")

    def _suffer(self, fault: Fault, moment: str) -> None:
        life = self._live("--resume", "auto")
        wait_for(moment, life, self._rng)
        step, saving, too_late = life.step(), life.saving(), life.code() is not None
        fault.strike(life, self._rng)
        took = self._end(life)
        where = f"{moment} (step {step}{', saving' if saving else ''}{', too late' if too_late else ''})"
        in_the_steps = life.done_before < step < STEPS and not too_late and not is_finished(self.run)
        if in_the_steps and (wrong := fault.wrong(life)):
            self._complain(life, f"{fault.name}, {where}: {wrong}")
        self._tell(fault.name, f"{where}: code {life.code()}, gone in {took:.1f} s")

    def _be_damaged(self) -> None:
        """The newest checkpoint: the next life goes on from the one before."""
        there = complete(self.run / "checkpoints")
        if len(there) < 2:
            return self._tell(DAMAGE, "not yet: there is none to go back to")
        newest = there[-1][1]
        file = self._rng.choice(files_of(newest))
        how = self._rng.choice(damages_of(file))
        how(file, self._rng)
        self._damaged = f"{file.relative_to(newest.parent)} {how.__name__.replace('_', ' ')}"
        return self._tell(DAMAGE, self._damaged)

    def _diverge(self) -> None:
        """It takes the advice that it is given."""
        life = self._live("--resume", "auto", "--optim.lr", "1e30")
        took = self._end(life)
        if is_finished(self.run):
            self._complain(life, "a run that diverges has finished")
        elif life.code() != 2 or "the run has diverged" not in life.text():
            self._complain(life, f"divergence: exit code {life.code()}")
        elif found := re.search(r"with --resume (\S+) and a lower", life.text()):
            self._end(self._live("--resume", found[1]))
        else:
            shutil.rmtree(self.run)
        self._tell(DIVERGENCE, f"code {life.code()}, gone in {took:.1f} s")

    def _live(self, *arguments: str) -> Life:
        self._lives += 1
        log = self.folder / f"{self._lives}.log"
        self.folder.mkdir(parents=True, exist_ok=True)
        return Life(self.run, log, self.kind, self._forked, *arguments)

    def _end(self, life: Life) -> float:
        seconds = life.is_gone_within(PATIENCE)
        if seconds is None:
            self._complain(life, f"processes are left after {PATIENCE:.0f} s")
        if self._damaged and life.has_opened_its_log():
            if "is damaged" not in life.text():
                self._complain(life, f"{self._damaged}: nothing is said of it")
            self._damaged = None
        return seconds or PATIENCE

    def _complain(self, life: Life, text: str) -> None:
        self.troubles.append(f"{text}; see {life.log}")

    def _tell(self, name: str, text: str) -> None:
        self.happened.append(name)
        print(f"round {self._number} ({self.kind}): {name}, {text}", flush=True)
