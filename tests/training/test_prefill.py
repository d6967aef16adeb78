"""Classes made of features before the first step, against means by name in plain Python."""

import io

import datasets
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from PIL import Image

from ffc_ds.config.settings import ClassOptimConfig, Config, HeadConfig
from ffc_ds.data.augment import to_input
from ffc_ds.data.decoding import decode
from ffc_ds.data.faces import Faces
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.training_faces import TrainingFaces
from ffc_ds.heads import MicroBatches, build_head
from ffc_ds.training import prefill as module
from ffc_ds.training.prefill import prefill
from tests.ranks import run_ranks

CPU, SIDE, DIM = torch.device("cpu"), 4, 6
LABELS = [name for name, images in zip("fdbace", (3, 1, 9, 2, 1, 4), strict=True) for _ in range(images)]
KNOWN = ["b", "e"]
HEADS = {
    "full_fc": HeadConfig("full_fc", init="features"),
    "partial_fc": HeadConfig("partial_fc", init="features", dtype="bfloat16"),
    "ffc": HeadConfig(init="features"),
    "one image each": HeadConfig(prefill=1.0),
    "unit weights": HeadConfig("full_fc", margin="sphereface_r", init="features"),
}


class Net:
    """Stands in for the engine: every image by itself, so that it does not matter which rank has it."""

    device, dtype = CPU, torch.float32
    matrix = torch.randn(3 * SIDE**2, DIM, generator=torch.Generator().manual_seed(0))

    def gallery_features(self, images):
        return images.flatten(1) @ self.matrix


def people():
    pixels = np.random.default_rng(0).integers(0, 256, (len(LABELS), SIDE, SIDE, 3), np.uint8)
    return of_pixels(pixels, LABELS)


def of_pixels(pixels, labels):
    files = [io.BytesIO() for _ in labels]
    for image, file in zip(pixels, files, strict=True):
        Image.fromarray(image).save(file, "PNG")
    images = [file.getvalue() for file in files]
    faces = Faces(datasets.Dataset.from_dict({"image": images, "label": labels}), "made", "image", "label")
    index = IdentityIndex.build(lambda: iter([pa.array(labels, pa.large_string())]))
    return TrainingFaces(faces, index), index, images


def fill(kind):
    faces, index, _ = people()
    config = Config(head=HEADS[kind])
    config.model.image_size = SIDE
    head = build_head(config.head, ClassOptimConfig(), index.identities, DIM, MicroBatches(4, 4), CPU, 0)
    known = np.array([name in KNOWN for name in index.names.to_pylist()])
    bars = []

    def shown(batches):
        for number in batches:
            yield number
            bars.append(number)
        bars.append("done")

    module.CHUNK = 5  # less than some of them have
    before = head.weights.clone()
    prefill(head, Net(), faces, index, config, 2, shown, known)
    return before, head.weights, bars


def fill_all():
    return {kind: fill(kind) for kind in HEADS}


def by_name():
    """Features of all images of each, of length 1."""
    _, _, images = people()
    features = {}
    for name, image in zip(LABELS, images, strict=True):
        pixels = torch.from_numpy(decode(image, SIDE))[None]
        features.setdefault(name, []).append(
            F.normalize(Net().gallery_features(to_input(pixels, dtype=torch.float32))[0], dim=0)
        )
    return features


def test_new_identities_begin_with_the_mean_of_their_features():
    found, features = run_ranks(2, fill_all), by_name()
    for kind, head in HEADS.items():
        before, weights = (torch.cat([of_rank[kind][part] for of_rank in found]).float() for part in (0, 1))
        norm = 0.01 * DIM**0.5 if kind in ("full_fc", "partial_fc") else 1.0
        tolerance = {"rtol": 1e-2, "atol": 1e-4} if head.dtype == "bfloat16" else {"rtol": 1e-5, "atol": 1e-6}
        for row, name in enumerate(sorted(features)):
            own = features[name][:1] if kind == "one image each" else features[name]
            wanted = before[row] if name in KNOWN else norm * F.normalize(sum(own), dim=0)
            torch.testing.assert_close(
                weights[row], wanted, **tolerance, msg=lambda text, what=(kind, name): f"{what} {text}"
            )
        for bars in (of_rank[kind][2] for of_rank in found):
            assert bars == [*range(len(bars) - 1), "done"] and len(bars) > 1


class NormalisingNet(Net):
    """It takes the mean of its batch away, as batch normalisation does."""

    def gallery_features(self, images):
        features = super().gallery_features(images)
        return features - features.mean(0)


def classes_of_many_images():
    """8 people of 16 images each, in batches of 8. Returns their classes, and which is nearest to each image."""
    rng = np.random.default_rng(0)
    bases, noise = rng.integers(60, 196, (8, 1, SIDE, SIDE, 3)), rng.integers(-30, 30, (8, 16, SIDE, SIDE, 3))
    pixels = (bases + noise).astype(np.uint8).reshape(-1, SIDE, SIDE, 3)
    faces, index, _ = of_pixels(pixels, [name for name in "abcdefgh" for _ in range(16)])
    config = Config(head=HEADS["full_fc"])
    config.model.image_size = SIDE
    head = build_head(config.head, ClassOptimConfig(), 8, DIM, MicroBatches(4, 4), CPU, 0)
    module.CHUNK = 1 << 16
    prefill(head, NormalisingNet(), faces, index, config, 8, iter)
    features = NormalisingNet().gallery_features(to_input(torch.from_numpy(pixels), dtype=torch.float32))
    return head.weights, F.normalize(features, dim=1)


def test_a_net_that_normalises_by_its_batch_tells_people_apart():
    found = run_ranks(2, classes_of_many_images)
    centers, features = torch.cat([weights for weights, _ in found]), found[0][1]
    nearest = (features @ F.normalize(centers, dim=1).T).argmax(1)
    right = (nearest == torch.arange(8).repeat_interleave(16)).float().mean()
    assert right > 0.9, right


def test_no_part_of_the_images_is_much_smaller_than_the_others():
    module.CHUNK = 10
    chunks = module._chunks(np.array([3] * 7))
    assert [3 * (chunk.stop - chunk.start) for chunk in chunks] == [9, 6, 6]
