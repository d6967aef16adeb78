"""A handful of what `make soak` does for minutes: things happen to a run, which ends as if nothing had."""

import random
from pathlib import Path

from tests.soak.faults import FAULTS
from tests.soak.kinds import Kind
from tests.soak.rounds import DAMAGE, Round
from tests.soak.soak import Soak
from tests.warm import Call, environment, run_warm

SEED = 0
HANDFUL = {
    "SIGTERM to its second process": "a step",
    "kill -9 of a rank": "a save",
    DAMAGE: None,
    "a full disk for a while": "a verification",
}


def _play(folder: Path) -> None:
    soak, by_name = Soak(folder, 0), {fault.name: fault for fault in FAULTS}
    this = Round(folder / "run", 0, random.Random(SEED), Kind("ffc lru", 2, 2))
    soak.play(this, [(by_name.get(name, name), moment) for name, moment in HANDFUL.items()], "this test")
    print(this.happened)


def test_a_run_to_which_a_handful_of_things_happens(tmp_path):
    (ended,) = run_warm([Call(_play, (tmp_path,), environment())])
    assert ended.code == 0 and "as if nothing had happened" in ended.stdout, ended.stdout + ended.stderr
    assert str(list(HANDFUL)) in ended.stdout
