"""Free memory of a container, and heads that would take more of it."""

import pytest
import torch

from ffc_ds import heads, host_memory
from ffc_ds.config.settings import ClassOptimConfig, HeadConfig
from ffc_ds.errors import UserError

MIB = 1 << 20


@pytest.mark.parametrize(("limit", "used"), host_memory.LIMITS)
def test_a_container_has_what_its_limit_leaves(tmp_path, monkeypatch, limit, used):
    monkeypatch.setattr(host_memory, "CGROUP", tmp_path)
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    (tmp_path / limit).write_text(f"{9 * MIB}\n")
    (tmp_path / used).write_text(f"{7 * MIB}\n")
    (tmp_path / limit).with_name("memory.stat").write_text(f"anon {3 * MIB}\ninactive_file {2 * MIB}\nslab 1\n")
    assert host_memory.free_memory() == 4 * MIB
    assert heads.build("full_fc", 1000, 512, 4).classes == 1000
    with pytest.raises(UserError, match=r"weights of 2000 classes .* need 0.0 GiB on each of 1 ranks"):
        heads.build("full_fc", 2000, 512, 4)
    with pytest.raises(UserError, match=r"free: use more ranks, head.dtype bfloat16, --head.name ffc, or a shorter"):
        heads.build("full_fc", 4000, 512, 4)
    with pytest.raises(UserError, match=r"free: use more ranks, --head.name ffc, or a shorter"):
        heads.build("full_fc", 4000, 512, 4, dtype="bfloat16")
    (tmp_path / limit).write_text("max\n")
    assert host_memory.free_memory() > 9 * MIB


def test_pinned_memory_is_rounded_up_for_each_rank(monkeypatch):
    def refuse(numbers, *_):
        raise UserError(f"{numbers} numbers")

    monkeypatch.setattr(heads, "world_size", lambda: 3)
    monkeypatch.setattr(heads, "_refuse_what_does_not_fit", refuse)
    optim, batches = ClassOptimConfig("adamw", memory="host"), heads.MicroBatches(4, 8)
    with pytest.raises(UserError, match=f"^{2 * 4096} numbers"):  # of 334 classes a rank
        heads.build_head(HeadConfig(name="full_fc"), optim, 1001, 8, batches, torch.device("cuda"), 0)
