"""Classes of one run that go on in another, on other ranks and under other heads, against a dict by name."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from ffc_ds.config.settings import ClassOptimConfig, Config, HeadConfig
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.distributed import Aside, rank
from ffc_ds.errors import UserError
from ffc_ds.heads import MicroBatches, build_head
from ffc_ds.training import checkpoint, known_classes
from ffc_ds.training.backbone_state import BackboneCopy
from ffc_ds.training.identity import identity_of
from ffc_ds.training.known_classes import take_known_classes
from ffc_ds.training.manifest import Writer
from tests.ranks import run_ranks

CPU, DIM, UPDATES = torch.device("cpu"), 8, 7
OLD = [f"person {number:02}" for number in range(0, 22, 2)]
NEW = [f"person {number:02}" for number in range(0, 27, 3)]  # those of 0, 6, 12 and 18 are known
SOME = {"name": "full_fc", "optim": "sgd", "names": OLD, "dtype": "float32", "train": "data/a"}
KINDS = {
    "full": {"name": "full_fc"},
    "partial": {"name": "partial_fc"},
    "partial, bf16": {"name": "partial_fc", "dtype": "bfloat16"},
    "full, adamw": {"optim": "adamw"},
    "partial, adamw": {"name": "partial_fc", "optim": "adamw"},
    "ffc": {"name": "ffc"},
    "unit weights": {"margin": "sphereface_r"},
}


def made(seed=0, **how):
    """Config, index and head of a run."""
    how = SOME | how
    names, train, optim = (how.pop(key) for key in ("names", "train", "optim"))
    config = Config(head=HeadConfig(**how), class_optim=ClassOptimConfig(optim))
    config.data.train, config.model.embedding_size = train, DIM
    index = IdentityIndex(np.arange(len(names) + 1), np.arange(len(names)), pa.array(names))
    head = build_head(config.head, config.class_optim, len(names), DIM, MicroBatches(4, 4), CPU, seed)
    return config, index, head


def write(folder, **how):
    """A checkpoint of class state that is different in every number. Returns this rank's part of it."""
    config, index, head = made(**how)
    for number, tensor in enumerate(shards(head).values()):
        generator = torch.Generator().manual_seed(10 * rank() + number)
        tensor.copy_(3 + torch.rand(tensor.shape, generator=generator))
    if hasattr(head, "optimizer"):
        head.optimizer.updates = UPDATES
    engine = SimpleNamespace(
        copy=lambda: BackboneCopy({}, {}), followers=[], zero_stage=0, optimizer_name="SGD", device=CPU
    )
    about = {"identity": identity_of(config, engine, index, "people"), "config": asdict(config)}
    checkpoint.write(folder, checkpoint.copy(5, engine, head, about, index.names), Aside())
    return shards(head)


def shards(head):
    return {name: shard.local for name, shard in head.shards().items()}


def take(folder, dim=DIM, **how):
    config, index, head = made(seed=1, **how)
    config.head.weights, config.model.embedding_size = str(folder), dim
    known_classes.ROWS, known_classes.NAMES = 2, 4
    known = take_known_classes(head, config, index, True, CPU, iter)
    return known, shards(head), head.optimizer.updates if hasattr(head, "optimizer") else None


def take_as(folder, targets):
    return [take(folder, names=names, **KINDS[kind]) for kind, names in targets]


def by_name(source, kind, names):
    """What is expected, and whether an optimizer's state comes along."""
    _, _, head = made(seed=1, names=names, **KINDS[kind])
    rows = {name: {part: tensor[row] for part, tensor in source.items()} for row, name in enumerate(OLD)}
    wanted = shards(head)
    of_features, norm = [("velocity" in each or "first_moment" in each) for each in (source, wanted)], DIM**0.5 / 100
    for row, name in enumerate(names):
        for part in wanted if name in rows else ():
            if part in rows[name]:
                wanted[part][row] = rows[name][part]
        if name in rows and of_features[0] != of_features[1]:
            wanted["weights"][row] = F.normalize(rows[name]["weights"], dim=0) * (norm if of_features[1] else 1)
        elif name in rows and kind == "unit weights":
            wanted["weights"][row] = F.normalize(rows[name]["weights"], dim=0)
    return wanted, len(wanted.keys() & source.keys()) > 1


@pytest.mark.parametrize(
    ("source", "writers", "readers", "targets"),
    [
        ("partial", 2, 3, ["full", "partial, bf16", "full, adamw", "ffc", "unit weights"]),
        ("ffc", 3, 1, ["partial", "ffc"]),
        ("full, adamw", 1, 2, ["partial, adamw", "partial"]),
    ],
)
def test_classes_are_found_by_name(tmp_path, source, writers, readers, targets):
    targets = [(kind, NEW) for kind in targets] + [(targets[0], NEW[:2])]  # fewer than ranks
    written = run_ranks(writers, write_as, tmp_path / "step-5", source)
    whole = {part: torch.cat([each[part] for each in written]) for part in written[0]}
    found = run_ranks(readers, take_as, tmp_path / "step-5", targets)
    for number, (kind, names) in enumerate(targets):
        expected, with_momentum = by_name(whole, kind, names)
        for part, value in expected.items():
            parts = torch.cat([of_rank[number][1][part] for of_rank in found])
            torch.testing.assert_close(parts, value, msg=lambda text, kind=kind, part=part: f"{kind} {part}: {text}")
        for known, _, updates in (of_rank[number] for of_rank in found):
            assert known.tolist() == [name in OLD for name in names]
            assert updates is None or updates == (UPDATES if with_momentum else 0), kind


def write_as(folder, kind):
    return write(folder, **KINDS[kind])


def alone_and_among_others(folder):
    """data/a alone, and as one of a list, where its people are called a/NAME."""
    write(folder / "alone" / "step-1", train="data/a", names=[4, 7, 9])
    write(folder / "listed" / "step-1", train=["data/a", "b"], names=["a/10", "a/4", "b/4", "b/5"])
    listed = {"train": ["b", "elsewhere/a"], "names": ["a/10", "a/4", "a/7", "b/4"]}
    return (
        take(folder / "alone" / "step-1", **listed)[0].tolist(),
        take(folder / "listed" / "step-1", names=[4, 5, 10])[0].tolist(),
        take(folder / "listed" / "step-1", **listed)[0].tolist(),
    )


def test_a_set_alone_and_among_others_is_the_same_people(tmp_path):
    expected = [False, True, True, False], [True, False, True], [True, True, False, True]
    assert run_ranks(2, alone_and_among_others, tmp_path) == [expected] * 2


def refused(folder, **how):
    with pytest.raises(UserError) as caught:
        take(folder, **how)
    assert caught.value.shared
    return str(caught.value)


def refusals(folder):
    heads = {"metric": {"name": "metric"}, "virtual": {"name": "virtual_fc", "group_identities": 2}}
    heads["lru"] = {"name": "ffc", "pool": "lru", "pool_size": 8}
    for kind, how in heads.items():
        write(folder / kind, **how)
    found = {kind: refused(folder / kind) for kind in heads}
    write(folder / "plain")
    found["nobody"] = refused(folder / "plain", names=["someone else"])
    found["sub_centers"] = refused(folder / "plain", sub_centers=2)
    found["dim"] = refused(folder / "plain", dim=2 * DIM)
    found["nowhere"] = refused(folder / "nowhere")
    write(folder / "twice", names=[*OLD[:4], OLD[3]])
    found["twice"] = refused(folder / "twice")
    write(folder / "no names")
    if rank() == 0:
        (folder / "no names" / "identities.parquet").unlink()
        writer = Writer(folder / "no names")
        writer.seal({})
    Aside().gather(None)
    found["no names"] = refused(folder / "no names")
    write(folder / "cut")
    Aside().gather((folder / "cut" / "class" / "__1_0.distcp").unlink() if rank() == 0 else None)
    found["cut"] = refused(folder / "cut")
    return found


def test_what_cannot_be_taken_is_refused_on_all_ranks(tmp_path):
    one, other = run_ranks(2, refusals, tmp_path)
    assert one == other
    for kind, words in {
        "metric": ["head.name metric", "nothing of single identities"],
        "virtual": ["head.name virtual_fc"],
        "lru": ["head.name ffc with head.pool lru"],
        "nobody": ["none of the 1 identities", "'someone else' here", "'person 00' there"],
        "sub_centers": ["head.sub_centers is 1 in", "and 2 here"],
        "dim": [f"model.embedding_size is {DIM} in", f"and {2 * DIM} here"],
        "nowhere": ["no undamaged checkpoint", "step-N"],
        "twice": ["'person 06' twice"],
        "no names": ["no identities.parquet", "Copy the one"],
        "cut": ["damaged", "__1_0.distcp"],
    }.items():
        assert all(word in one[kind] for word in words), (kind, one[kind])
