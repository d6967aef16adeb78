"""Data for tests of protocols, in the form of the public sets: a tiny net, pictures, an IJB-like folder."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ffc_ds.evaluation.alignment import TEMPLATE
from ffc_ds.models import build_backbone


def tiny_model(folder: Path) -> Path:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = build_backbone("vit", image_size=32, embedding_size=16, batch_norm=False, **shape)
    model.save_pretrained(folder)
    return folder


def picture(seed: int, person: int, width: int = 64, height: int = 64) -> Image.Image:
    """A smooth pattern that belongs to the person, with noise of its own."""
    own, shared = np.random.default_rng(seed), np.random.default_rng(10_000 + person)
    pixels = np.clip(shared.integers(256, size=(4, 4, 3)) + own.normal(0, 40, (4, 4, 3)), 0, 255)
    return Image.fromarray(pixels.astype(np.uint8)).resize((width, height), Image.Resampling.BILINEAR)


def person_folders(folder: Path, people: int, images: int, suffix: str = ".jpg", first: int = 0) -> Path:
    """LFW's layout: folder/Person_3/Person_3_0001.jpg."""
    for person in range(first, first + people):
        place = folder / f"Person_{person}"
        place.mkdir(parents=True)
        for i in range(1, images + 1):
            picture(1000 * person + i, person).save(place / f"Person_{person}_{i:04d}{suffix}")
    return folder


def write_lines(path: Path, rows) -> None:
    path.write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))


def ijb_folder(folder: Path, prefix: str = "ijbc", subjects: int = 12, impostors: int = 300) -> dict:
    """An IJB-like folder: two templates a subject, of one to six images in one to three media; half of the subjects
    in each gallery. Returns what was written, by image and by template."""
    rng = np.random.default_rng(0)
    (folder / "loose_crop").mkdir(parents=True)
    meta, listed, points, owner = folder / "meta", [], [], {}
    meta.mkdir()
    for template in range(2 * subjects):
        number, subject = 7 * template + 3, template // 2  # numbers with gaps, as in the real files
        owner[number] = 100 + subject
        for _ in range(rng.integers(1, 7)):
            name = f"{len(listed) + 1}.jpg"
            width, height = rng.integers(90, 150, 2)
            picture(len(listed), subject, int(width), int(height)).save(folder / "loose_crop" / name)
            angle, scale = rng.normal(0, 0.2), rng.uniform(0.5, 0.9)
            turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            landmarks = (TEMPLATE - 56) @ turn.T + [width / 2, height / 2] + rng.normal(0, 1, (5, 2))
            listed.append((name, number, 1000 * number + rng.integers(3)))
            points.append((name, *landmarks.ravel().round(3), round(rng.uniform(0.3, 1), 3)))
    numbers = np.array(list(owner))
    pairs = [(a, b, 1) for a, b in zip(numbers[::2], numbers[1::2], strict=True)]
    while len(pairs) < subjects + impostors:
        a, b = rng.choice(numbers, 2, replace=False)
        if owner[a] != owner[b]:
            pairs.append((a, b, 0))
    write_lines(meta / f"{prefix}_face_tid_mid.txt", listed)
    write_lines(meta / f"{prefix}_name_5pts_score.txt", points)
    write_lines(meta / f"{prefix}_template_pair_label.txt", pairs)
    first, second = ("S1", "S2") if prefix == "ijbb" else ("G1", "G2")
    galleries = {f"gallery_{first}": numbers[:subjects:2], f"gallery_{second}": numbers[subjects::2]}
    files = galleries | {"probe_mixed": numbers[1::2]}
    for name, chosen in files.items():
        rows = [f"{t},{owner[t]},img/{image}" for t in chosen for image, number, _ in listed if number == t]
        (meta / f"{prefix}_1N_{name}.csv").write_text("\n".join(["TEMPLATE_ID,SUBJECT_ID,FILENAME", *rows]) + "\n")
    return {"listed": listed, "points": points, "pairs": pairs, "owner": owner, **files}
