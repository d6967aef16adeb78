"""Ranks as processes of their own, and what else may listen where they want to meet."""

import os
import socket
import subprocess
import sys
import textwrap

import pytest

from ffc_ds import rendezvous
from ffc_ds.errors import UserError
from tests.launched import ROOT, free_port

RANK = """
    import sys
    from ffc_ds import rendezvous
    from ffc_ds.launching import run_for_user

    def main():
        store = rendezvous.meet()
        print("met", flush=True)
        sys.stdin.read()

    rendezvous.GRACE = 0
    run_for_user(main)
"""


def environ(rank: int, world: int, port: str) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in numbers.items()}


def start(rank: int, world: int, port: str, *arguments: str) -> subprocess.Popen:
    line = [sys.executable, "-c", textwrap.dedent(RANK), f"--local_rank={rank}", *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | environ(rank, world, port)
    pipe = subprocess.PIPE
    return subprocess.Popen(line, cwd=ROOT, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_runs_that_want_the_same_port_are_not_mixed():
    port = free_port()
    run = [start(rank, 2, port, "--seed", "1") for rank in (0, 1)]
    assert [rank.stdout.readline() for rank in run] == ["met\n"] * 2
    another = [start(rank, 2, port, "--seed", "2") for rank in (0, 1)]
    same_again, larger = start(1, 2, port, "--seed", "1"), start(2, 3, port, "--seed", "1")
    messages = [rank.communicate(timeout=60)[1] for rank in (*another, same_again, larger)]
    assert [rank.returncode for rank in (*another, same_again, larger)] == [2] * 4
    assert f"port {port}" in messages[0] and f"--master_port {int(port) + 1}" in messages[0]
    assert all(f"127.0.0.1:{port} answers, but not for this run" in text for text in messages[1:])
    assert all(rank.poll() is None for rank in run)
    assert [rank.communicate(timeout=60)[1] for rank in run] == [""] * 2
    assert [rank.returncode for rank in run] == [0, 0]


@pytest.fixture
def taken():
    """A port where something listens that never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


def meet_as(monkeypatch, rank, world, port):
    for name, value in environ(rank, world, port).items():
        monkeypatch.setenv(name, value)
    return rendezvous.meet()


@pytest.mark.parametrize(
    ("rank", "mentions"), [(0, ["cannot be used", "--master_port"]), (1, ["answers, but not for this run"])]
)
def test_a_port_where_another_program_listens(monkeypatch, taken, rank, mentions):
    monkeypatch.setattr(rendezvous, "ANSWER", 0.5)
    monkeypatch.setattr(rendezvous, "GRACE", 0)
    with pytest.raises(UserError) as caught:
        meet_as(monkeypatch, rank, 2, taken)
    assert taken in str(caught.value) and all(word in str(caught.value) for word in mentions)


def test_a_rank_alone_takes_any_port(monkeypatch, taken):
    store = meet_as(monkeypatch, 0, 1, taken)
    assert os.environ["MASTER_PORT"] == str(store.port) != taken
    monkeypatch.delenv("RANK")
    assert rendezvous.meet().port != store.port
    assert [os.environ[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")] == ["0", "0", "1"]


def test_ranks_that_do_not_come(monkeypatch):
    monkeypatch.setattr(rendezvous, "PATIENCE", 0.2)
    with pytest.raises(UserError, match="of 3 ranks 2 did not start .* rank 1 first"):
        meet_as(monkeypatch, 0, 3, free_port())
    with pytest.raises(UserError, match="rank 0 is not at 127.0.0.1"):
        meet_as(monkeypatch, 1, 3, free_port())


def test_an_environment_that_says_too_little(monkeypatch):
    for name, value in environ(0, 2, "port").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="MASTER_PORT is 'port', which is no number: start them with deepspeed"):
        rendezvous.meet()
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(UserError, match="RANK is set, but MASTER_ADDR is not"):
        rendezvous.meet()
    monkeypatch.delenv("RANK")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="OMPI_COMM_WORLD_SIZE says that there are several processes"):
        rendezvous.meet()
