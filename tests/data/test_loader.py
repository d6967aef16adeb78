import io
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from ffc_ds.data import batch_checks
from ffc_ds.data import loader as loader_module
from ffc_ds.data.batch_checks import advice_on_waiting, check_batch_size, check_shared_memory
from ffc_ds.data.faces import Faces
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.loader import make_loader
from ffc_ds.data.reading import image_batches, read_images, read_into
from ffc_ds.data.sampler import Sampler
from ffc_ds.data.training_faces import TrainingFaces
from ffc_ds.errors import UserError
from tests.identities import index_labels

SIZE, IMAGES = 8, 60


def png(value):
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (value, 2 * value, 0)).save(file, "PNG")
    return file.getvalue()


def make_faces(damaged=()):
    """Row i is an image of the colour i, of identity i // 2 (the last ones have one image each)."""
    images = [b"damaged" if i in damaged else png(i) for i in range(IMAGES)]
    labels = [i // 2 if i < 40 else i for i in range(IMAGES)]
    return Faces(datasets.Dataset.from_dict({"image": images, "label": labels}), "the test faces", "image", "label")


@pytest.fixture(scope="module")
def faces():
    return make_faces()


@pytest.fixture(scope="module")
def sampler(faces):
    return Sampler(IdentityIndex.build(faces.labels), 24, seed=4)


def rows_shown(images):
    return images[..., 0, 0, 0].numpy()


@pytest.mark.parametrize("world_size, accumulation", [(1, 1), (2, 1), (3, 2), (1, 4), (6, 2)])
def test_the_ranks_together_show_the_plan(faces, sampler, world_size, accumulation):
    steps = range(5, 8)
    ranks = [
        list(make_loader(faces, sampler, SIZE, rank, world_size, accumulation, steps.start, steps.stop, workers=0))
        for rank in range(world_size)
    ]
    for number, step in enumerate(steps):
        plan = sampler.plan(step)
        micro_steps = range(number * accumulation, (number + 1) * accumulation)
        for field, expected in (("images", plan.images), ("flips", plan.flips), ("bytes", plan.bytes)):
            parts = [getattr(ranks[rank][micro], field) for micro in micro_steps for rank in range(world_size)]
            shown = np.concatenate([rows_shown(part) if field == "images" else part for part in parts], axis=1)
            assert np.array_equal(shown, expected)
        for rank in ranks:
            labels = [rank[micro].labels for micro in micro_steps]
            assert all(isinstance(part, np.ndarray) for part in labels)
            assert np.array_equal(np.concatenate(labels, axis=1), plan.identities)
        assert ranks[0][micro_steps[0]].images.dtype == torch.uint8
        assert ranks[0][micro_steps[0]].images.shape == (2, 12 // world_size // accumulation, SIZE, SIZE, 3)


@pytest.mark.parametrize("planned", [1, 60, 4096])
def test_workers_resumption_and_planning_ahead_change_nothing(faces, sampler, planned, monkeypatch):
    monkeypatch.setattr(loader_module, "PLANNED_IMAGES", planned)

    def batches(start, end, workers):
        return list(make_loader(faces, sampler, SIZE, 1, 2, 3, start, end, workers))

    uninterrupted = batches(0, 6, 0)
    for other in (batches(0, 6, 2), batches(0, 2, 2) + batches(2, 6, 1)):
        assert len(other) == len(uninterrupted) == 18
        for a, b in zip(uninterrupted, other, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
            assert isinstance(b.labels, np.ndarray)


def test_workers_never_write_where_a_batch_is_still_being_copied(faces, sampler):
    loader = make_loader(faces, sampler, SIZE, 0, 1, 1, 0, 12, workers=2)
    for step, _ in enumerate(DataLoader.__iter__(loader)):  # not copied yet
        time.sleep(0.05)  # workers do all that they were asked for
        assert np.array_equal(rows_shown(loader.places[step % len(loader.places)]), sampler.plan(step).images)


def test_making_a_loader_leaves_the_global_generator_alone(faces, sampler):
    before = torch.get_rng_state()
    list(make_loader(faces, sampler, SIZE, 0, 1, 1, 0, 2, workers=1))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("threads", [1, 3])
def test_image_batches_keep_the_order(faces, threads):
    rows = np.array([5, 5, 2, 59, 0, 41, 7])
    batches = list(image_batches(faces, rows, SIZE, 3, threads))
    assert len(image_batches(faces, rows, SIZE, 3, threads)) == len(batches)
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert batches[0].dtype == torch.uint8 and batches[0].shape == (3, SIZE, SIZE, 3)
    assert np.array_equal(rows_shown(torch.cat(batches)), rows)


def test_read_images_resizes_and_keeps_the_shape(faces):
    images = read_images(faces, np.array([[3, 1], [1, 2]]), 12)
    assert images.shape == (2, 2, 12, 12, 3) and rows_shown(images).tolist() == [[3, 1], [1, 2]]


def refusal(loader):
    with pytest.raises(UserError) as caught:
        list(loader)
    if getattr(loader, "num_workers", 0):
        loader._iterator._shutdown_workers()  # at once; the garbage collector would wait for them
    return str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(workers, sampler):
    message = refusal(make_loader(make_faces(damaged=range(IMAGES)), sampler, SIZE, 0, 1, 1, 0, 3, workers))
    row = sampler.plan(0).images.min()
    label = row // 2 if row < 40 else row
    assert message == f"row {row} (label {label}) of the test faces: not a readable image of 7 bytes (unknown format)"


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (3, 0)])
def test_damaged_images_give_way_to_the_next_of_their_identity(faces, sampler, world_size, workers):
    substitute = np.arange(IMAGES)
    substitute[[4, 9, 17]] = [5, 8, 16]
    damaged = TrainingFaces(make_faces(damaged=(4, 9, 17)), IdentityIndex.build(faces.labels))
    ranks = [list(make_loader(damaged, sampler, SIZE, r, world_size, 1, 2, 12, workers)) for r in range(world_size)]
    said = []
    for step, *batches in zip(range(2, 12), *ranks, strict=True):
        plan = sampler.plan(step)
        shown = rows_shown(torch.cat([batch.images for batch in batches], dim=1))
        assert np.array_equal(shown, substitute[plan.images])
        said += (step_said := [what for batch in batches for what in batch.replaced])
        # every place counts, so that the number of ranks does not
        assert sorted(int(what.split()[1]) for what in step_said) == sorted(plan.images[plan.images != shown].tolist())
    assert len(set(said)) == 3
    reason = "row 4 (label 2) of the test faces: not a readable image of 7 bytes (unknown format)"
    assert f"{reason}; row 5 (label 2) of the test faces takes its place" in said


def test_substitutes_are_tried_in_turn():
    labels = np.array([1, 0, 1, 1, 0, 1])
    images = [png(i) if i not in (2, 3, 5) else b"damaged" for i in range(6)]
    faces = Faces(datasets.Dataset.from_dict({"image": images, "label": labels}), "x", "image", "label")
    training = TrainingFaces(faces, index_labels(labels))
    assert training.substitutes(3).tolist() == [5, 0, 2] and training.substitutes(4).tolist() == [1]
    rows = np.array([[2, 4], [3, 2]])
    assert rows_shown(read_images(training, rows, SIZE)).tolist() == [[0, 4], [0, 0]]
    said = read_into(np.empty((2, 2, SIZE, SIZE, 3), np.uint8), training, rows)
    assert [what.split("; ")[1] for what in said] == ["row 0 (label 1) of x takes its place"] * 3  # one for each place
    assert [len(batch) for batch in image_batches(training, np.arange(6), SIZE, 4, 1)] == [4, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bound_on_pixels_reaches_the_decoder(faces, sampler, workers):
    exact, reason = SIZE**2 / 1e6, "of the test faces: its header announces 8 x 8 pixels"
    for bound, sees in ((exact, True), (exact - 1e-6, False)):
        for loader in (
            make_loader(faces, sampler, SIZE, 0, 1, 1, 0, 2, workers, bound),
            image_batches(faces, np.arange(IMAGES), SIZE, 30, 1, bound),
        ):
            assert len(list(loader)) == 2 if sees else reason in refusal(loader)


def test_an_image_over_the_bound_gives_way_to_another():
    large = io.BytesIO()
    Image.new("RGB", (30, 30)).save(large, "PNG")
    images = [large.getvalue(), png(1), large.getvalue(), png(3)]
    faces = Faces(datasets.Dataset.from_dict({"image": images, "label": [0, 0, 0, 0]}), "x", "image", "label")
    training, rows = TrainingFaces(faces, IdentityIndex.build(faces.labels)), np.array([[0, 2]])
    shown = np.empty((1, 2, SIZE, SIZE, 3), np.uint8)
    said = read_into(shown, training, rows, 0.0005)
    assert rows_shown(torch.from_numpy(shown)).tolist() == [[1, 3]]
    assert said[0] == (
        "row 0 (label 0) of x: its header announces 30 x 30 pixels, and max_megapixels allows 0.0005 million; "
        "row 1 (label 0) of x takes its place"
    )


def test_an_identity_without_a_sound_image_is_named(sampler):
    faces = make_faces(damaged=(8, 9))
    training = TrainingFaces(faces, IdentityIndex.build(faces.labels))
    message = refusal(make_loader(training, sampler, SIZE, 0, 1, 1, 0, 10, workers=1))
    assert "(label 4) of the test faces: not a readable" in message and "no other image of that identity" in message


@pytest.mark.parametrize(
    "arguments, works",
    [
        ((100, 4, 3), "96 or 120"),
        ((7, 4, 1), "8"),
        ((0, 1, 1), "2"),
        ((12, 4, 1), "8 or 16, or 1, 2, 3 or 6 ranks"),
        ((24, 3, 8), "48, or train.accumulation 1, 2 or 4"),
        ((36, 2, 2), "32 or 40, or 1 or 3 ranks, or train.accumulation 1, 3 or 9"),
        ((25, 1, 1), "24 or 26"),
        ((2592, 1, 35), "2590 or 2660, or train.accumulation 12, 16, 18, 24, 27, 36, 48 or 54"),  # the nearest
    ],
)
def test_uneven_batches_name_what_works(arguments, works):
    with pytest.raises(UserError) as refused:
        check_batch_size(*arguments)
    assert str(refused.value).split(": choose ")[1] == works


def test_micro_batches_hold_whole_identities():
    check_batch_size(48, 1, 4, 2)
    works = "16 or 32, or train.accumulation 1, 2, 3 or 6"
    with pytest.raises(UserError, match=f"of whole identities, 2 images in a view: choose {works}$"):
        check_batch_size(24, 1, 4, 2)


def test_even_batches(faces, sampler):
    for arguments in ((96, 4, 3), (2, 1, 1), (24, 3, 4)):
        check_batch_size(*arguments)
    with pytest.raises(UserError, match="24 cannot be cut"):
        make_loader(faces, sampler, SIZE, 0, 5, 1, 0, 1, 0)


def test_shared_memory_that_is_too_small(monkeypatch, faces, sampler):
    ranks = [make_loader(faces, sampler, SIZE, rank, 2, 1, 0, 4, workers=2) for rank in (0, 1)]
    needed = sum(place.nbytes for rank in ranks for place in rank.places)
    free = [needed]
    monkeypatch.setattr(batch_checks.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[0]))
    check_shared_memory(sampler.batch_size, SIZE, workers=2)
    free = [needed - 1]
    check_shared_memory(sampler.batch_size / 2, SIZE, workers=2)
    check_shared_memory(sampler.batch_size, SIZE, workers=0)
    with pytest.raises(UserError, match="data.workers 2 takes .* /dev/shm has .* --shm-size, or choose fewer"):
        check_shared_memory(sampler.batch_size, SIZE, workers=2)


def test_steps_that_wait_long():
    assert advice_on_waiting(0.3, 2) is None
    assert advice_on_waiting(0.5, 2).startswith("50% of the time steps wait for images")


def test_workers_outlive_an_interrupt_that_the_parent_handles(faces, sampler):
    batches = iter(make_loader(faces, sampler, SIZE, 0, 1, 1, 0, 20, workers=2))
    for _ in range(2):  # both workers are up
        next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(batches)) == 18


def test_ctrl_c_prints_no_worker_traceback(tmp_path):
    script = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from test_loader import make_faces, Sampler, IdentityIndex, make_loader
        from ffc_ds.launching import run_for_user
        faces = make_faces()
        sampler = Sampler(IdentityIndex.build(faces.labels), 24)
        def main():
            for batch in make_loader(faces, sampler, 8, 0, 1, 1, 0, 10**6, 2):
                print("batch", flush=True)
        run_for_user(main)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), os.path.dirname(__file__)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )
    for _ in range(4):  # both workers are up
        assert process.stdout.readline() == "batch\n"
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and errors.startswith("\nstopped;") and "Traceback" not in errors
