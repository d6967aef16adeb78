"""What is saved of the backbone under one ZeRO stage on so many ranks goes on under any other, as if it never ended."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ffc_ds.distributed import rank, world_size
from ffc_ds.errors import UserError
from ffc_ds.training.backbone_state import BackboneState
from ffc_ds.training.manifest import Writer
from tests.ranks import run_ranks
from tests.training.test_engine import engine_for, loss_of

STAGES = ("zero0", "zero1", "zero2", "zero3", "offload")


def do_steps(engine, steps):
    for step in steps:
        engine.backward(loss_of(engine, seed=step) * 1e-2)
        assert engine.step(0.1)


def write(copy, folder):
    writer = Writer(folder)
    copy.write(writer)
    torch.distributed.barrier()
    assert writer.failure is None


def content(folder):
    """All tensors, by name, and the numbers."""
    found = {}
    for path in folder.glob("backbone/*"):
        found |= load_file(path)
        with safe_open(path, "pt") as file:
            numbers = file.metadata()
    return found, numbers


def saved_by_each(folder, names):
    """After two steps. Returns weights after four."""
    found = {}
    for name in names:
        engine = engine_for(name, optimizer=folder.name)
        do_steps(engine, range(2))
        write(engine.copy(), folder / name)
        do_steps(engine, range(2, 4))
        found[name] = engine.weights()
    return found


def gone_on_from_each(folder, names):
    """Weights after four steps, two of which were done by another engine. What was loaded is saved once more."""
    engines = {name: engine_for(name, optimizer=folder.name) for name in names}
    found = {}
    for (name, engine), path in itertools.product(engines.items(), sorted(folder.iterdir())):
        do_steps(engine, [9])  # whatever it did before is forgotten
        engine.load(path)
        write(engine.copy(), folder.parent / f"{path.name} {name} {world_size()}")
        do_steps(engine, range(2, 4))
        found[name, path.name] = engine.weights()
    return found


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_any_stage_and_ranks_go_on_from_any(tmp_path, optimizer):
    folder, names = tmp_path / optimizer, STAGES if optimizer == "sgd" else STAGES[1:4:2]
    whole = run_ranks(2, saved_by_each, folder, names)[0][names[0]]
    for world in (1, 3):
        found = run_ranks(world, gone_on_from_each, folder, names)[0]
        assert len(found) == len(names) ** 2
        for (name, source), weights in found.items():
            (before, numbers), (after, same) = map(content, (folder / source, tmp_path / f"{source} {name} {world}"))
            assert numbers == same and before.keys() == after.keys()
            assert all(torch.equal(after[key], value) for key, value in before.items()), (world, name, source)
            for key, value in weights.items() if optimizer == "sgd" else ():  # the other one divides noise by noise
                torch.testing.assert_close(value, whole[key], rtol=1e-4, atol=1e-6, msg=f"{world} {source} {key}")


def same_again(folder):
    found = {}
    for name, optimizer in (("zero0", "adamw"), ("zero2", "adamw"), ("zero3", "sgd"), ("bf16", "sgd")):
        engine = engine_for(name, optimizer=optimizer)
        for done in (0, 2):
            do_steps(engine, range(done))
            copy = engine.copy()
            do_steps(engine, range(2, 4))
            expected = engine.weights()
            write(copy, folder / f"{name}-{done}")
            engine.load(folder / f"{name}-{done}")
            do_steps(engine, range(2, 4))
            found[name, done] = all(torch.equal(value, expected[key]) for key, value in engine.weights().items())
    return found


def test_where_nothing_has_changed_it_is_the_same_bit_for_bit(tmp_path):
    """Also in half precision, and back to before the first step."""
    for found in run_ranks(2, same_again, tmp_path):
        assert all(found.values()), found


def test_steps_are_counted_as_a_fused_optimizer_wants_them():
    """Beside its weights, where torch looks for them; DeepSpeed's own counts in the last weight alone."""
    net = torch.nn.Linear(3, 2, device="meta")
    optimizer = torch.optim.AdamW(net.parameters())
    optimizer.defaults["fused"] = True  # which is for a GPU
    state = BackboneState(SimpleNamespace(module=net, optimizer=None, basic_optimizer=optimizer))
    optimizer.state[net.weight]["step"], optimizer.state[net.bias]["step"] = 0, 3
    numbers = state._numbers()
    optimizer.state.clear()
    assert numbers["steps"] == 3 and state._numbers()["steps"] is None
    state._set_numbers(numbers)
    assert {optimizer.state[part]["step"].device.type for part in net.parameters()} == {"meta"}


NUMBERS = {"numbers": '{"keys": [], "steps": null, "scale": {}}'}


def of_another_net(folder):
    engine, writer = engine_for("zero2"), Writer(folder / "of")
    engine.copy().write(writer)
    with pytest.raises(UserError, match="missing or incomplete"):
        engine.load(folder)
    path = writer.folder / "backbone" / f"part-{rank()}.safetensors"
    if rank() == 1:
        held = load_file(path)
        save_file(held | {next(iter(held)): torch.ones(3)}, path, NUMBERS)
    torch.distributed.barrier()
    with pytest.raises(UserError, match=r"cannot be loaded: weight.* is \[3\], not "):
        engine.load(writer.folder)
    if rank() == 1:
        path.write_bytes(b"nothing")
    torch.distributed.barrier()
    with pytest.raises(UserError, match=r"part-1.safetensors cannot be loaded: "):
        engine.load(writer.folder)
    return True


def test_what_is_of_another_net_or_cut_off_is_refused_on_all_ranks(tmp_path):
    assert run_ranks(2, of_another_net, tmp_path) == [True, True]
