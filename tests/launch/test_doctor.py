"""`launch/doctor.py` on two ranks: a row for each check, and what is broken is found and named, whatever it is."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.launched import ROOT, TINY, free_port
from tests.warm import Call, Ended, environment, run_script, run_warm

NAMES = ["ranks", "settings", "versions", "clocks", "matrices", "all-gather", "all-reduce", "softmax", "output_dir"]
NAMES += ["data", "workers", "step", "checkpoints", "memory", "/dev/shm", "open files"]


def examine(how, *arguments: str, **each: list[str]) -> list[Ended]:
    """How two ranks ended that called `how(*arguments)`; each: the values of a variable for them."""
    job = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    own = [{name: values[rank] for name, values in each.items()} for rank in (0, 1)]
    ranks = [environment(RANK=str(rank), LOCAL_RANK=str(rank), **job, **own[rank]) for rank in (0, 1)]
    return run_warm([Call(how, (*TINY, *arguments), rank) for rank in ranks], kill_others=True, timeout=60)


def rows(text: str) -> dict[str, tuple[str, str]]:
    """State and text of each row."""
    found, name = {}, None
    for line in text.splitlines():
        if line.startswith(("ok ", "warning ", "problem ")):
            name = next(each for each in NAMES if line[9:].startswith(each))
            assert name not in found
            found[name] = line.split()[0], line[24:]
        elif name and line.startswith(" " * 24):
            found[name] = found[name][0], f"{found[name][1]} {line.strip()}"
        else:
            name = None
    return found


def problems(text: str) -> dict[str, str]:
    return {name: said for name, (state, said) in rows(text).items() if state == "problem"}


def doctor(*arguments: str) -> None:
    run_script("launch/doctor.py", *arguments)


def test_a_row_for_each_check_and_nothing_left_behind(tmp_path):
    first, second = examine(doctor, "--output_dir", str(tmp_path / "run"))
    assert (first.code, second.code) == (0, 0), first.stderr[-3000:] + second.stderr[-3000:]
    found = rows(first.stdout)
    assert list(found) == NAMES and not problems(first.stdout) and "ok " not in second.stdout
    host = os.uname().nodename
    assert f"2 ranks on 1 host. {host}: ranks 0 to 1" in found["ranks"][1]
    # 12 rows of 16 numbers in fp32 of each rank, 24 rows of three numbers
    assert "for 1.54 kB" in found["all-gather"][1] and "for 288 B" in found["softmax"][1]
    assert "60 identities" in found["data"][1] and "images/s" in found["data"][1]
    assert not list(tmp_path.iterdir())


def with_few_files():
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def test_what_is_broken_is_found_under_the_launcher(tmp_path):
    (tmp_path / "file").touch()
    arguments = ["--output_dir", str(tmp_path / "file" / "run")]
    arguments += ["--head.name", "full_fc", "--head.sub_centers", str(10**8)]  # 380 GiB of class weights
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", "2"]
    done = subprocess.run(
        [*launcher, "--master_port", free_port(), "launch/doctor.py", *TINY, *arguments],
        cwd=ROOT,
        env=environment(),
        preexec_fn=with_few_files,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-3000:]
    found = problems(done.stdout)
    assert set(found) == {"output_dir", "memory", "open files"}, done.stdout
    assert "Not a directory" in found["output_dir"]
    assert "end what else takes memory" in found["memory"] and "--head.name ffc" in found["memory"]
    assert "may have 100" in found["open files"] and "ulimit -n" in found["open files"]
    assert rows(done.stdout)["checkpoints"][0] == "warning" and "'output_dir'" in rows(done.stdout)["checkpoints"][1]
    assert done.stderr.count("error: ") == 1 and "output_dir, memory, open files" in done.stderr


def hasty(*arguments):
    from ffc_ds import shared_folder

    shared_folder.PATIENCE = 0.3
    doctor(*arguments)


def test_folders_that_are_not_shared_too_little_shared_memory_and_data_that_cannot_be_read(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1 and no more")
    places = [str(tmp_path / "a"), str(tmp_path / "b")]
    for place in places:
        Path(place, "run").mkdir(parents=True)
    Path(places[0], "run", ".doctor-1-0").touch()  # of a doctor that was killed
    given = ("--output_dir", "$PLACE/run", "--data.train", str(tmp_path / "data"), "--data.workers", str(10**7))
    first, second = examine(hasty, *given, PLACE=places)
    assert (first.code, second.code) == (2, 2) or second.code == -signal.SIGKILL, second.stderr[-3000:]
    found = problems(first.stdout)
    assert set(found) == {"output_dir", "data", "/dev/shm", "open files"}, first.stdout + first.stderr[-3000:]
    assert "not one folder for all ranks" in found["output_dir"] and "rank 1" in found["output_dir"]
    assert str(tmp_path / "data") in found["data"] and "--shm-size" in found["/dev/shm"]
    for name in ("workers", "step", "checkpoints", "memory"):
        assert rows(first.stdout)[name][0] == "warning" and "'data'" in rows(first.stdout)["memory"][1]
    assert not list(Path(places[0], "run").iterdir())


def where_one_rank_stops(*arguments):
    from ffc_ds.doctor import examination, meeting

    def measure(case):
        other_is_there = Path(os.environ["THERE"])
        if os.environ["RANK"] == os.environ["STOPPED"]:
            while not other_is_there.exists():  # it may still wait for an answer about the check before
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGSTOP)
        other_is_there.touch()
        return check.measure(case)

    meeting.GRACE = 1.0
    check = examination.CHECKS[3]
    stopped = check._replace(measure=measure, seconds=1.0)
    examination.CHECKS = examination.CHECKS[:3] + (stopped,) + examination.CHECKS[4:]
    doctor(*arguments)


def test_a_rank_that_does_not_come(tmp_path):
    there = [str(tmp_path / "there")] * 2
    first, _ = examine(where_one_rank_stops, "--output_dir", str(tmp_path / "run"), STOPPED="11", THERE=there)
    assert first.code == 2 and "Traceback" not in first.stderr, first.stderr[-3000:]
    assert list(rows(first.stdout)) == NAMES[:4]
    assert "rank 1 gave no sign of life" in problems(first.stdout)["clocks"]
    assert "'clocks' did not end" in first.stderr


def test_a_rank_0_that_does_not_come(tmp_path):
    there = [str(tmp_path / "there")] * 2
    _, second = examine(where_one_rank_stops, "--output_dir", str(tmp_path / "run"), STOPPED="00", THERE=there)
    assert second.code == 2 and "Traceback" not in second.stderr, second.stderr[-3000:]
    assert f"rank 1 on {os.uname().nodename} waited in vain for rank 0" in second.stderr
