"""`train.profile`: a trace of so many steps, of rank 0, that a viewer can open."""

import gzip
import json

from ffc_ds.training.profile import Profile
from tests.launched import train_tiny


def test_a_run_leaves_a_trace_of_some_steps(tmp_path):
    done = train_tiny(2, tmp_path, "--train.steps", "8", "--train.profile", "2")
    (path,) = (tmp_path / "profile").iterdir()
    assert path.name == "from_step_6.json.gz"
    assert (done.stdout + done.stderr).count(f"the trace is {path}; open it at https://ui.perfetto.dev") == 1
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    names = [each.get("name", "") for each in events]
    assert {name for name in names if name.startswith("ProfilerStep#")} == {"ProfilerStep#5", "ProfilerStep#6"}
    assert "aten::addmm" in names and any(name.startswith("gloo:") for name in names)


def test_a_run_too_short_for_a_trace_says_so(tmp_path, capsys):
    with Profile(2, tmp_path / "profile", 10, 15) as profile:
        for _ in range(5):
            profile.step()
    assert "no trace, which would begin after 5 steps; there are 5 to do" in "".join(capsys.readouterr())
    assert not (tmp_path / "profile").exists()
