"""What is made of measurements that no test can bring about, and the measurements that need no ranks."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement

from ffc_ds.config.settings import Config, DataConfig, ModelConfig
from ffc_ds.data.faces import Faces
from ffc_ds.doctor import data_path, versions
from ffc_ds.doctor.case import Case, Unmeasured
from ffc_ds.doctor.collectives import judge_step
from ffc_ds.doctor.compute import judge_matrices
from ffc_ds.doctor.data_path import judge_data, judge_workers
from ffc_ds.doctor.finding import Finding, amount, duration, table
from ffc_ds.doctor.limits import judge_files, judge_memory, judge_shared_memory
from ffc_ds.doctor.output_folder import checkpoint_bytes, judge_checkpoints
from ffc_ds.doctor.ranks import judge_clocks, judge_ranks
from ffc_ds.doctor.settings import plan_of
from ffc_ds.doctor.versions import conflicts, judge_versions
from ffc_ds.planning.backbone import count_backbone
from ffc_ds.planning.plan import SAVED
from ffc_ds.planning.settings import PlanSettings
from tests.tables import table as images

CPU, GPU = torch.device("cpu"), torch.device("cuda")
RATE = {"bf16": 1e14, "fp32": 1e13}
TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
NET = {"backbone": "vit", "overrides": TINY, "image_size": 32}
SETTINGS = PlanSettings(2, 2, 2, head="full_fc", batch_size=64, **NET)
DATA = {"identities": 10**6, "images": 10**7, "number": 256, "read": 1e9, "rate": 2e4, "damaged": [], "cores": 32}
FAST = {"total": 1e7, "sent": 1e7, "seconds": 1e-4}
FOLDER = {"rate": 1e9, "sync": 1e-3, "free": 1e13}


def case(device=GPU, hosts=("a", "b"), workers=4, **heard):
    """Two ranks with one GPU each, on fast hosts with room."""
    known = {
        "ranks": [{"host": host} for host in hosts],
        "settings": [asdict(SETTINGS)] * 2,
        "matrices": [RATE] * 2,
        "data": [DATA] * 2,
        "output_dir": [FOLDER] * 2,
    }
    known |= dict.fromkeys(("all-gather", "all-reduce", "softmax"), [FAST] * 2)
    return Case(Config(data=DataConfig(workers=workers)), device, known | heard)


def expect(finding, state, *words):
    assert finding.state == state, finding
    for word in words:
        assert word in f"{finding.measured} -> {finding.advice}"


def changed(base, **changes):
    """Of two ranks, the second."""
    return [base, base | changes]


def test_ranks():
    one = {"host": "a", "machine": "H100, 80 GiB", "gpu": "0", "gpus": 2}
    expect(judge_ranks(case(), changed(one, gpu="1")), "ok", "2 ranks on 1 host", "a: ranks 0 to 1, H100")
    expect(judge_ranks(case(), [one, one]), "problem", "share a GPU", "--num_accelerators")
    expect(judge_ranks(case(), [one]), "warning", "one is used of 2", "deepspeed launch/doctor.py")
    other = {"host": "b", "gpu": "1"}
    expect(judge_ranks(case(), changed(one, machine="V100, 32 GiB", **other)), "warning", "differ", "V100", "slowest")
    expect(judge_ranks(case(), [one, one | {"gpu": "1"}, one | other | {"gpu": "2"}]), "warning", "numbers of ranks")


@pytest.mark.parametrize(("ahead", "state"), [(0.01, "ok"), (-3.0, "warning"), (100.0, "problem")])
def test_clocks(ahead, state):
    times = np.arange(9.0)
    late = times + ahead
    late[4] += 50  # one round in which it was late
    expect(judge_clocks(case(), [times.tolist(), late.tolist()]), state, f"{abs(ahead):.3g} s apart")
    if state != "ok":
        expect(judge_clocks(case(hosts="abc"), [times, times, late]), state, "rank 2 on c is farthest", "chrony")


def test_versions():
    known = {"versions": {"torch": "2.13.0", "system": "6.1"}, "conflicts": []}
    expect(judge_versions(case(), changed(known, versions={"torch": "2.13.0", "system": "6.2"})), "ok", "torch 2.13.0")
    others = changed(known, versions={"torch": "2.9.0", "system": "6.1"})
    expect(judge_versions(case(), others), "problem", "rank 1 on b has torch 2.9.0", "pip install")
    expect(judge_versions(case(), changed(known, conflicts=["a needs b"])), "problem", "a needs b")


def test_conflicts_are_found_as_deep_as_they_lie(monkeypatch):
    there = {"ours": "1.0", "torch": "2.13.0", "numpy": "2.4.6"}
    needs = {"ours": ["torch>=2.6", "missing; extra == 'test'"], "torch": ["numpy<2", "sympy", "ours"]}
    monkeypatch.setattr(versions, "_requirements", lambda name: needs.get(name, []))
    monkeypatch.setattr(versions, "_version", there.get)
    assert conflicts("ours") == ["torch needs numpy<2, but there is 2.4.6", "torch needs sympy, which is not installed"]


def test_what_the_environment_is_said_to_need_is_what_it_needs():
    assert any(Requirement(text).name == "torch" for text in versions._requirements("ffc_ds"))
    assert versions._requirements("no-such-package") == []


@pytest.mark.parametrize(
    ("capability", "troubles"), [((8, 0), []), ((9, 0), []), ((12, 0), []), ((7, 5), ["sm_75", "bf16"])]
)
def test_gpus_that_torch_was_not_built_for(monkeypatch, capability, troubles):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90a", "compute_90"])
    said = versions._device_trouble(case())
    assert len(said) == len(troubles) and all(word in text for word, text in zip(troubles, said, strict=True))
    assert versions._runs("sm_80", *capability) == (capability == (8, 0))


def test_matrices():
    expect(judge_matrices(case(), [RATE] * 2), "ok", "100 TFLOP/s", "--matrix-tflops 100")
    expect(judge_matrices(case(), changed(RATE, bf16=5e13)), "warning", "slow: rank 1 on b")
    expect(judge_matrices(case(), [{"bf16": 1e12, "fp32": 2e12}] * 2), "warning", "less than the 2 of fp32", "fp32")


def test_a_slow_network_is_told_by_what_it_costs():
    expect(judge_step(case(), [None] * 2), "ok", "--bandwidth")
    plan, slow = plan_of(case()), FAST | {"seconds": 0.1}
    finding = judge_step(case(**{"all-reduce": changed(FAST, **slow)}), [None] * 2)
    expect(finding, "warning", "NCCL_SOCKET_IFNAME", f"{duration(plan.sent['backbone'] / 1e8)} for the backbone")
    with pytest.raises(Unmeasured, match="'data'"):
        plan_of(Case(Config(), GPU, {"ranks": [{"host": "a"}] * 2, "settings": [asdict(SETTINGS)] * 2}))


def test_data():
    expect(judge_data(case(), [DATA] * 2), "ok", "10,000,000 images of 1,000,000 identities", "20,000 images/s")
    expect(judge_data(case(), changed(DATA, damaged=["row 3: no image"])), "warning", "1 of 512", "row 3", "inspect")
    expect(judge_data(case(), changed(DATA, damaged=["row 3: no image"] * 30)), "problem", "30 of 512")


def test_sampled_images_are_counted_and_damaged_ones_named():
    table = images(range(40))
    rows = [{"bytes": row["image"]["bytes"], "path": None} for row in table.cast_column("image", _undecoded())]
    rows[7] = {"bytes": rows[7]["bytes"][:-30], "path": None}
    faces = Faces(table.map(lambda _, i: {"image": rows[i]}, with_indices=True), "these", "image", "label")
    settings = Case(Config(model=ModelConfig(image_size=8)), CPU)
    found = data_path._sample(settings, faces, np.random.default_rng(0).permutation(40))
    assert found["number"] == 40 and len(found["damaged"]) == 1 and found["damaged"][0].startswith("row 7 (label 7)")


def _undecoded():
    import datasets

    return datasets.Image(decode=False)


def test_workers():
    def judged(workers, rate, cores=32, hosts=("a", "b")):
        data = [DATA | {"rate": rate, "cores": cores}] * 2
        return judge_workers(case(workers=workers, hosts=hosts, data=data), [None] * 2)

    wanted = 0.5 * plan_of(case()).images_per_second(RATE["bf16"]) / 2
    expect(judged(4, wanted / 3), "ok")
    expect(judged(2, wanted / 3.5), "warning", "choose data.workers 4")
    expect(judged(4, wanted / 3, cores=4, hosts=("a", "a")), "warning", "cores are too few")
    expect(judged(0, wanted / 2), "warning", "choose data.workers 2")
    expect(judged(0, wanted * 10), "ok", "10% of the time")


def test_checkpoints():
    size = checkpoint_bytes(plan_of(case()))
    number = count_backbone(SETTINGS).parameters
    # weights and momentum of both, in fp32
    assert size == (4 + 4) * number + 2 * 4 * 512 * 10**6
    expect(judge_checkpoints(case(), [None] * 2), "ok", amount(size))
    for room, state in ((3.5, "ok"), (2.5, "warning"), (0.5, "problem")):
        folder = changed(FOLDER, free=room * size)
        expect(judge_checkpoints(case(output_dir=folder), [None] * 2), state, *(["make room"] * (state != "ok")))
    expect(judge_checkpoints(case(output_dir=[FOLDER | {"rate": 1e6}] * 2), [None] * 2), "warning", "faster output_dir")


def test_memory_of_gpu_and_host():
    plan = plan_of(case())
    gpu, host = plan.total - plan.memory["CUDA and NCCL"], plan.host["loader"] + plan.host[SAVED]
    roomy = {"gpu": 2 * gpu, "host": 2 * host}
    expect(judge_memory(case(), [roomy] * 2), "ok", f"gpu: {gpu / 2**30:.2f} of {2 * gpu / 2**30:.2f} GiB")
    expect(judge_memory(case(), changed(roomy, gpu=1.05 * gpu)), "warning")
    expect(judge_memory(case(), changed(roomy, gpu=0.9 * gpu)), "problem", "at least 3 GPUs", "class_optim.memory host")
    expect(judge_memory(case(), changed(roomy, host=0.9 * host)), "problem", "fewer data.workers")


def test_memory_without_gpus_is_that_of_all_ranks_of_a_host():
    apart, beside = case(CPU), case(CPU, hosts=("a", "a"))
    plan = plan_of(beside)
    needed = 2 * plan.total + sum(plan.host[name] for name in ("pool index, class optimizer", "loader", SAVED))
    assert plan.memory["CUDA and NCCL"] == 0
    expect(judge_memory(beside, [{"host": 1.2 * needed}] * 2), "ok", f"host: {needed / 2**30:,.2f} of")
    expect(judge_memory(beside, [{"host": 0.6 * needed}] * 2), "problem")
    expect(judge_memory(apart, [{"host": 0.6 * needed}] * 2), "ok")


def test_shared_memory_that_is_enough_for_images_but_not_for_nccl():
    expect(judge_shared_memory(case(), [64 << 20] * 2), "ok", "67.1 MB")
    beside = case(hosts=("a", "a"))
    expect(judge_shared_memory(beside, [64 << 20] * 2), "warning", "NCCL", "--shm-size")
    expect(judge_shared_memory(beside, [None] * 2), "ok")


def test_files():
    # 64 of its own, 4 workers of 12, 2 ranks of 8, beside those that are open
    room = {"open": 28, "limit": 1024, "hard": 10**6}
    expect(judge_files(case(), [room] * 2), "ok", "may have 1,024, has 28 and may need 156")
    expect(judge_files(case(), changed(room, limit=200)), "warning", "rank 1 on b", "ulimit -n 4096 on every host")
    expect(judge_files(case(), changed(room, limit=100, hard=100)), "problem", "raise the hard limit")


def test_the_table_and_its_numbers(monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    said = table({"one": Finding("ok", "all is well"), "two": Finding("problem", "word " * 20, "do this")}).splitlines()
    assert said[0] == "ok       one            all is well"
    assert said[1].startswith("problem  two            word word") and said[-1] == " " * 24 + "-> do this"
    assert max(map(len, said)) <= 70 and len(said) == 5
    assert [amount(size) for size in (7, 1536, 2.5e9, 1e16)] == ["7 B", "1.54 kB", "2.5 GB", "1e+04 TB"]
    assert [duration(seconds) for seconds in (2e-6, 0.0123, 1, 4321)] == ["0.002 ms", "12.3 ms", "1.0 s", "4,321.0 s"]


def test_cases_name_ranks_before_their_hosts_are_known():
    assert Case(Config(), CPU).name(3) == "rank 3" and case().name(1) == "rank 1 on b"
    assert case(hosts="aba").ranks_of_hosts() == {"a": [0, 2], "b": [1]}
