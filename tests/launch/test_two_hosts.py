"""A run across two hosts, which network namespaces play: as docs/clusters.md has it, equal to one host bit for bit."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import pytest
import torch
import torch.distributed as dist

from ffc_ds import interface
from ffc_ds.interface import VARIABLE, address_towards, choose_interface
from ffc_ds.rendezvous import meet
from tests.hosts import ADDRESSES, INTERFACE, NAMES, lacking, move_to, two_hosts
from tests.launched import TINY, metrics, train_tiny
from tests.warm import ROOT, Call, environment, run_warm

STEPS = 40
SETTINGS = ("--train.steps", str(STEPS), "--eval.holdout", "0", "--eval.every", "0")
CUT = float(os.environ.get("CUT_SECONDS", 1))  # with 15, as one would, these tests take two minutes

LACKING = lacking()
needs_namespaces = pytest.mark.skipif(LACKING is not None, reason=str(LACKING))


def train_across(folder, once_it_steps, *arguments):
    """`deepspeed` on both hosts, as without ssh. `once_it_steps(hosts)` is called when a step has been logged.

    Returns the exit codes of the hosts, and what each wrote to stdout and to stderr.
    """
    (folder / "hostfile").write_text("".join(f"{name} slots=1\n" for name in NAMES))
    line = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(folder / "hostfile"), "--no_ssh"]
    line += ["--master_addr", NAMES[0], "--node_rank"]
    training = ["launch/train.py", *TINY, *SETTINGS, "--output_dir", str(folder / "run"), *arguments]
    launchers, pipe = [], subprocess.PIPE
    with two_hosts(folder) as hosts:
        try:
            for host in (0, 1):
                command = hosts.command(host, *line, str(host), *training)
                streams = {"stdout": pipe, "stderr": pipe, "text": True, "start_new_session": True}
                launchers.append(subprocess.Popen(command, cwd=ROOT, env=environment(), **streams))
            if steps(folder / "run" / "metrics.jsonl", launchers):
                once_it_steps(hosts)
            written = [launcher.communicate(timeout=200) for launcher in launchers]
            return [launcher.returncode for launcher in launchers], *zip(*written, strict=True)
        finally:
            for launcher in launchers:
                with suppress(ProcessLookupError):
                    os.killpg(launcher.pid, signal.SIGKILL)


def steps(log, launchers):
    """Wait for the first logged step. Returns whether there is one, before any launcher has ended."""
    while all(launcher.poll() is None for launcher in launchers):
        if log.exists() and '"loss"' in log.read_text():
            return True
        time.sleep(0.01)
    return False


@needs_namespaces
def test_across_two_hosts_as_on_one_also_while_the_link_is_cut(tmp_path):
    at_the_end_of_the_cut = []

    def cut_for_a_while(hosts):
        hosts.cut()
        time.sleep(CUT)
        at_the_end_of_the_cut.extend(metrics(tmp_path / "run"))
        hosts.mend()

    codes, stdout, stderr = train_across(tmp_path, cut_for_a_while)
    assert codes == [0, 0], "".join(stderr)[-4000:]
    assert 0 < len(at_the_end_of_the_cut) < STEPS
    ways = zip(NAMES, ADDRESSES, (ADDRESSES[1], NAMES[0]), stdout, strict=True)
    for name, own, other, said in ways:
        assert said.count(f"{name} takes the network interface {INTERFACE} ({own}), which leads to {other}\n") == 1
    one = train_tiny(2, tmp_path / "one", *SETTINGS)
    assert "network interface" not in one.stdout
    assert_same(tmp_path / "run", tmp_path / "one")


@needs_namespaces
@pytest.mark.skipif("CUT_SECONDS" not in os.environ, reason="takes a minute: set CUT_SECONDS=15")
def test_a_link_that_is_cut_for_good_ends_both_hosts_and_one_of_them_goes_on(tmp_path):
    def cut(hosts):
        while not list((tmp_path / "run" / "checkpoints").glob("step-*")):
            time.sleep(0.01)
        hosts.cut()

    codes, _, stderr = train_across(tmp_path, cut, "--train.checkpoint_every", "1", "--train.step_timeout", "0.2")
    assert codes == [1, 1] and "Traceback" not in "".join(stderr), "".join(stderr)[-4000:]
    missed = "on south) did not come", "Rank 0 does not answer"
    for name, did_not_come, said in zip(NAMES, missed, stderr, strict=True):
        (message,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert message.startswith(f"error: {name}: ") and did_not_come in message
    assert 0 < max(line["step"] for line in metrics(tmp_path / "run")) < STEPS
    train_tiny(2, tmp_path / "run", *SETTINGS, "--resume", "latest")
    train_tiny(2, tmp_path / "one", *SETTINGS)
    assert_same(tmp_path / "run", tmp_path / "one")


def assert_same(run, other):
    assert metrics(run) == metrics(other) and len(metrics(other)) >= STEPS
    assert len({(folder / "model" / "model.safetensors").read_bytes() for folder in (run, other)}) == 1


def join(pid):
    """A rank on the host of a process: joins the others, and prints by which interface and which sum they have."""
    move_to(pid)
    torch.set_num_threads(1)
    store = meet()
    dist.init_process_group("gloo")
    del store
    ranks = torch.tensor(float(dist.get_rank()))
    dist.all_reduce(ranks)
    print(f"{os.environ.get(VARIABLE)} {ranks.item():g}", flush=True)
    dist.barrier()


@needs_namespaces
def test_ranks_beside_rank_0_go_its_way_and_a_given_one_stays(tmp_path):
    places = [(0, 0, 2), (0, 1, 2), (1, 0, 1)]  # host, number on it, and of how many
    with two_hosts(tmp_path) as hosts:
        calls = []
        for rank, (host, local, size) in enumerate(places):
            numbers = {"RANK": rank, "WORLD_SIZE": len(places), "LOCAL_RANK": local, "LOCAL_SIZE": size}
            job = {name: str(number) for name, number in numbers.items()}
            job |= {"MASTER_ADDR": NAMES[0], "MASTER_PORT": "29500"} | ({VARIABLE: INTERFACE} if host else {})
            calls.append(Call(join, (hosts.pids[host],), environment(**job)))
        ended = run_warm(calls, kill_others=True)
    assert [each.code for each in ended] == [0, 0, 0], ended
    said = f"{NAMES[0]} takes the network interface {INTERFACE} ({ADDRESSES[0]}), which leads to {ADDRESSES[1]}\n"
    assert [each.stdout for each in ended] == [f"{said}{INTERFACE} 3\n", f"{INTERFACE} 3\n", f"{INTERFACE} 3\n"]


def test_the_way_to_this_host_itself_is_none(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    for itself in ("127.0.0.1", "127.0.1.1", "localhost"):
        assert address_towards(itself) is None
        choose_interface(itself)
    assert VARIABLE not in os.environ


def test_an_interface_is_found_by_its_address(monkeypatch, capsys):
    interfaces = {"lo": [address("127.0.0.1")], "eth0": [address("10.0.0.7")], "eth1": [address("fe80::7%eth1")]}
    monkeypatch.setattr(interface.psutil, "net_if_addrs", lambda: interfaces)
    monkeypatch.setattr(interface, "_route", lambda host: ("fe80::7", "fe80::9"))
    monkeypatch.setenv(VARIABLE, "given")
    choose_interface("south")
    assert os.environ[VARIABLE] == "given" and capsys.readouterr().out == ""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("LOCAL_RANK", "1")
    choose_interface("south")
    assert os.environ[VARIABLE] == "eth1" and capsys.readouterr().out == ""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("LOCAL_RANK", "0")
    choose_interface("south")
    assert capsys.readouterr().out.startswith(f"{socket.gethostname()} takes the network interface eth1 (fe80::7), ")
    monkeypatch.setenv(VARIABLE, "")
    interfaces.pop("eth1")  # the address is translated on its way
    choose_interface("south")
    assert os.environ[VARIABLE] == ""


def address(text):
    return type("Address", (), {"address": text})
