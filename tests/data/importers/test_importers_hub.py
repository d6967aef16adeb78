import huggingface_hub
import numpy as np
import pytest
import yaml

from ffc_ds.data.importers.hub import card, push
from ffc_ds.data.importers.imagefolder import plan_imagefolder
from ffc_ds.data.importers.inspection import Inspection
from ffc_ds.errors import UserError
from tests.data.importers.formats import imported, pictures


@pytest.fixture
def folder(tmp_path):
    for i, image in enumerate(pictures(12)):
        (tmp_path / "faces" / str(i // 4)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / str(i // 4) / f"{i}.jpg").write_bytes(image)
    imported(plan_imagefolder(str(tmp_path / "faces")), tmp_path / "out")
    return tmp_path / "out"


@pytest.fixture
def hub(monkeypatch):
    """A token, and a hub that notes what it is asked for."""
    asked = []
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "token")
    for method in ("create_repo", "upload_folder"):
        monkeypatch.setattr(
            huggingface_hub.HfApi,
            method,
            lambda self, *given, method=method, **named: asked.append((method, given, named)),
        )
    return asked


def test_a_folder_is_uploaded_with_its_card(folder, hub, capsys):
    push(str(folder), "owner/faces", workers=1)
    assert hub == [
        ("create_repo", ("owner/faces",), {"repo_type": "dataset", "private": True, "exist_ok": True}),
        (
            "upload_folder",
            (),
            {
                "repo_id": "owner/faces",
                "folder_path": str(folder),
                "repo_type": "dataset",
                "allow_patterns": ["train-*.parquet", "README.md", "images_per_identity.png"],
            },
        ),
    ]
    text = (folder / "README.md").read_text()
    assert "12 images of 3 identities" in text and (folder / "images_per_identity.png").is_file()
    assert "https://huggingface.co/datasets/owner/faces" in capsys.readouterr().out
    (folder / "README.md").write_text("mine")
    push(str(folder), "owner/faces", workers=1)
    assert (folder / "README.md").read_text() == "mine"


def test_the_card_is_what_the_hub_reads():
    counts = np.array([1, 1, 3, 2000])
    text = card(Inspection(counts, [], 7, 2), "owner/big-faces")
    loaded = huggingface_hub.DatasetCard(text)
    assert loaded.data.pretty_name == "big-faces" and loaded.data.size_categories == ["1K<n<10K"]
    split = yaml.safe_load(text.split("---")[1])["configs"][0]["data_files"][0]
    assert split == {"split": "train", "path": "train-*.parquet"}
    for part in (
        "2,005 images of 4 identities",
        'load_dataset("owner/big-faces", split="train")',
        "501.2 images in the mean, 2 in the median and 2,000 at most",
        "| 1 | 2 |\n| 2-3 | 1 |",
        "| 1,024-2,047 | 1 |",
        "7 images repeat\nthe bytes of another one, 2 of them under another identity",
    ):
        assert part in text


@pytest.mark.parametrize(
    "images, category", [(999, "n<1K"), (1000, "1K<n<10K"), (5179510, "1M<n<10M"), (2 * 10**12, "n>1T")]
)
def test_size_categories(images, category):
    assert f"- {category}\n" in card(Inspection(np.array([images]), [], 0, 0), "owner/x").replace("'", "")


def test_what_cannot_be_uploaded(folder, hub, monkeypatch):
    def refused(reason, repo="owner/faces", folder=folder):
        with pytest.raises(UserError, match=reason):
            push(str(folder), repo, workers=1)

    refused("a b cannot be a name on the hub", repo="a b")
    (folder / "README.md").write_text("of something else")
    refused("no train-.*parquet in", folder=folder / ".prepare")
    assert not hub

    def fail(*_, **__):
        raise ConnectionError("no route\ndetails")

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", fail)
    refused(r"the upload to owner/faces stopped \(no route\)")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    refused("there is no token of the hub: run `hf auth login`, or set HF_TOKEN")
