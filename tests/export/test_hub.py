"""Folders for the hub: opened with and without this package, measured results on the card, no class state unasked."""

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from ffc_ds.data.augment import to_input
from ffc_ds.data.decoding import decode
from ffc_ds.errors import UserError
from ffc_ds.export import hub
from ffc_ds.export.hub import export_hub, import_insightface
from ffc_ds.models.image_processor import FaceImageProcessor, image_processor
from tests.export.finished_run import SMALL, everything_below, finished_run
from tests.hub_models import hub_model
from tests.umask import more_private_than_the_umask

PLAIN = {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "roc.png", "learning_curve.png"}
SHARED_CODE = {"batch_norm.py", "output.py", "errors.py", "image_processor.py", "rgb.py"}
CODE = {"iresnet18": "iresnet.py", "mobilefacenet": "mobilefacenet.py", "vit": "vit.py"}

STRANGER = """
import sys
sys.modules["ffc_ds"] = sys.modules["xxhash"] = None  # there is only transformers
import numpy as np
images = list(np.load("images.npy"))
for name in sys.argv[2:]:
    exec(open(f"{name}.py").read())
    np.save(f"{name}.npy", embeddings.numpy())
    np.save(f"{name}-inputs.npy", processor(sys.argv[1].split(":"), return_tensors="np").pixel_values)
    assert type(net).__module__.startswith("transformers_modules"), type(net)
    assert type(processor).__module__.startswith("transformers_modules"), type(processor)
"""


def faces(count: int, size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def kinds_of_images(folder) -> list[str]:
    """Paths of files whose pixels are more than three channels of 8 bits, or do not lie as they are to be seen."""
    rng, upright, lying = np.random.default_rng(1), Image.Exif(), Image.Exif()
    upright[274], lying[274] = 1, 6
    colour = Image.fromarray(rng.integers(0, 256, (45, 61, 4), dtype=np.uint8))
    rgb, square = colour.convert("RGB"), colour.convert("RGB").resize((32, 32))
    deep = rng.integers(0, 65536, (45, 61), dtype=np.uint16)
    images = {
        "lying.png": (rgb, {"exif": lying}),
        "lying.jpg": (square, {"exif": lying}),
        "upright.jpg": (square, {"exif": upright}),
        "lying.tif": (rgb, {"exif": lying}),
        "lying.webp": (rgb, {"exif": lying, "lossless": True}),
        "transparent.png": (colour, {}),
        "transparent_grey.png": (colour.convert("LA"), {}),
        "palette.png": (rgb.quantize(9), {"transparency": 3}),
        "palette.gif": (rgb.quantize(9), {"transparency": 3}),
        "deep.png": (Image.fromarray(deep), {}),
        "deep.tif": (Image.fromarray(deep), {}),
        "integers.tif": (Image.fromarray(deep.astype(np.int32)), {}),
        "float.tif": (Image.fromarray((deep / 65535).astype(np.float32)), {}),
        "bilevel.png": (rgb.convert("1"), {}),
    }
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    return [str(folder / name) for name in images]


def inputs_of_training(path: str, size: int = 32) -> torch.Tensor:
    return to_input(torch.tensor(decode(Path(path).read_bytes(), size))[None])


def embeddings(model, images: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1).embeddings


def test_without_our_package_the_code_on_the_card_gives_the_same_embeddings(tmp_path):
    images, expected = faces(2, 32), {}
    np.save(tmp_path / "images.npy", images)
    paths = kinds_of_images(tmp_path)
    of_hub = {f"from_{family}": f"hub:{hub_model(tmp_path / family, family)}" for family in ("dinov2", "resnet")}
    names = {name: name for name in SMALL} | of_hub
    for name, backbone in names.items():
        expected[name] = embeddings(finished_run(tmp_path / "runs" / name, backbone), images).numpy()
        export_hub(tmp_path / "runs" / name, tmp_path / "out" / name)
        card = (tmp_path / "out" / name / "README.md").read_text()
        assert str(tmp_path) not in card
        (snippet,) = re.findall("```python\n(.*?)```", card, re.DOTALL)
        (tmp_path / f"{name}.py").write_text(snippet.replace(f'"{name}"', f'"out/{name}"'))
        assert everything_below(tmp_path / "out" / name) == PLAIN | SHARED_CODE | {CODE.get(name, "hub_encoder.py")}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, ":".join(paths), *names],
        cwd=tmp_path,
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in names:
        largest = np.abs(expected[name]).max()
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), expected[name], rtol=1e-5, atol=1e-5 * largest)
        inputs = torch.cat([inputs_of_training(path) for path in paths]).numpy()
        np.testing.assert_allclose(np.load(tmp_path / f"{name}-inputs.npy"), inputs, rtol=0, atol=1e-6)


def test_with_our_package_the_folder_opens_as_our_class(tmp_path):
    model, images = finished_run(tmp_path / "run", "iresnet18"), faces(3, 32)
    export_hub(tmp_path / "run", tmp_path / "out")
    assert more_private_than_the_umask(tmp_path / "out") == []
    loaded = AutoModel.from_pretrained(tmp_path / "out")
    assert type(loaded) is type(model)
    assert torch.equal(embeddings(loaded, images), embeddings(model, images))


def test_image_processor_is_the_preprocessing_of_training(tmp_path):
    finished_run(tmp_path / "run")
    export_hub(tmp_path / "run", tmp_path / "out")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert type(processor) is FaceImageProcessor
    rng = np.random.default_rng(1)
    for size, mode in [((32, 32), "RGB"), ((45, 61), "RGB"), ((20, 20), "L")]:
        pixels = rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        image, path = Image.fromarray(pixels).convert(mode), str(tmp_path / "image.png")
        image.save(path)
        for given in (image, np.asarray(image.convert("RGB")), path, Path(path)):
            found = processor(given, return_tensors="pt").pixel_values
            assert found.shape == (1, 3, 32, 32)
            torch.testing.assert_close(found, inputs_of_training(path), rtol=0, atol=1e-6, msg=mode)


def test_image_processor_sees_every_kind_of_image_as_training_does(tmp_path):
    processor = image_processor(32)
    for path in kinds_of_images(tmp_path):
        with Image.open(path) as image:
            for given in (image, path):
                found = processor(given, return_tensors="pt").pixel_values
                torch.testing.assert_close(found, inputs_of_training(path), rtol=0, atol=1e-6, msg=path)


def test_image_processor_and_training_differ_little_on_jpegs_that_decode_otherwise(tmp_path):
    processor, path, level = image_processor(32), str(tmp_path / "image.jpg"), 1 / 127.5
    y, x = np.mgrid[:250, :250]
    smooth = Image.fromarray(np.stack([x, y, 255 - (x + y) // 2], -1).astype(np.uint8))
    for image, levels in ((smooth, 8), (smooth.resize((32, 32)).convert("CMYK"), 1)):
        image.save(path, quality=95)
        found = processor(path, return_tensors="pt").pixel_values
        torch.testing.assert_close(found, inputs_of_training(path), rtol=0, atol=(levels + 0.01) * level)


def test_card_holds_what_was_measured_and_nothing_of_the_machine(tmp_path):
    finished_run(tmp_path / "run")
    export_hub(tmp_path / "run", tmp_path / "face-net", push=None)
    card = ModelCard.load(tmp_path / "face-net" / "README.md")
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {"accuracy": 0.8342, "tar_at_far_0.01": 0.4801}
    assert card.data.library_name == "transformers" and "face-recognition" in card.data.tags
    for part in ("83.42 % ± 1.88", "63.58 %", "0.4801", "too few pairs to tell", "0.9075", "1.510", "heldout.bin"):
        assert part in card.text
    for part in ("4,600 identities", "10,716 images", "7 steps", "torch 2.13.0", "pool_size: 460.0", "  - faces"):
        assert part in card.text
    assert "someone" not in card.content and "secret" not in card.content
    for figure in re.findall(r"!\[.*\]\((.*)\)", card.text):
        assert (tmp_path / "face-net" / figure).read_bytes() == b"a picture"


def test_card_of_a_net_that_did_not_learn(tmp_path):
    finished_run(tmp_path / "run")
    path = tmp_path / "run" / "results.json"
    results = json.loads(path.read_text()) | {"trained": {"accuracy": None, "reason": "not finite"}, "untrained": None}
    path.write_text(json.dumps(results))
    export_hub(tmp_path / "run", tmp_path / "out")
    assert "not finite" in (tmp_path / "out" / "README.md").read_text()


def test_class_state_only_when_asked(tmp_path):
    finished_run(tmp_path / "run")
    export_hub(tmp_path / "run", tmp_path / "without")
    export_hub(tmp_path / "run", tmp_path / "with", with_class_state=True)
    added = everything_below(tmp_path / "with") - everything_below(tmp_path / "without")
    assert added == {f"class_state{file}" for file in ("", "/class", "/class/__0_0.distcp", "/host.npz")}
    assert (tmp_path / "with" / "class_state" / "class" / "__0_0.distcp").read_bytes() == b"class weights"


def test_push_uploads_the_folder(tmp_path, monkeypatch):
    calls = []

    class Hub:
        def create_repo(self, repo_id, private, exist_ok):
            calls.append(("create", repo_id, private, exist_ok))
            return type("Url", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id, folder_path):
            calls.append(("upload", repo_id, everything_below(folder_path)))

    monkeypatch.setattr(hub, "HfApi", Hub)
    finished_run(tmp_path / "run")
    export_hub(tmp_path / "run", tmp_path / "out", push="me/net")
    files = PLAIN | SHARED_CODE | {"iresnet.py"}
    assert calls == [("create", "me/net", True, True), ("upload", "me/net", files)]
    export_hub(tmp_path / "run", tmp_path / "open", push="me/net", public=True)
    assert calls[2] == ("create", "me/net", False, True)
    assert 'from_pretrained("me/net"' in (tmp_path / "out" / "README.md").read_text()


def test_a_hub_that_cannot_be_reached_leaves_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "HfApi", partial(HfApi, endpoint="http://127.0.0.1:9", token="hf_none"))
    finished_run(tmp_path / "run")
    with pytest.raises(UserError, match="out is written, but could not be uploaded to me/net"):
        export_hub(tmp_path / "run", tmp_path / "out", push="me/net")
    assert everything_below(tmp_path / "out") >= PLAIN


def spoil(run, what):
    results, weights = run / "results.json", run / "model" / "model.safetensors"
    if what == "unfinished":
        results.unlink()
    elif what == "cut results":
        results.write_text(results.read_text()[:-30])
    elif what == "other json":
        results.write_text('{"accuracy": 1}')
    elif what == "no weights":
        weights.unlink()
    elif what == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif what == "other model":
        (run / "model" / "config.json").write_text('{"model_type": "ffc_iresnet", "depth": 18, "image_size": 32}')
    elif what == "no checkpoint":
        (run / "checkpoints" / "step-7").rename(run / "checkpoints" / "step-6")


@pytest.mark.parametrize(
    ("what", "settings", "message"),
    [
        ("unfinished", {}, "results.json.*finished training"),
        ("cut results", {}, "results.json is not JSON that can be used"),
        ("other json", {}, "results.json.*lacks.*trained"),
        ("no weights", {}, "model.safetensors is missing"),
        ("cut weights", {}, "model cannot be loaded"),
        ("other model", {}, "do not fit its config.json: 168 of them, first bn1.bias"),
        ("no checkpoint", {"with_class_state": True}, "no class state in .*step-7"),
        ("nothing", {"push": "a/b/c"}, "--push a/b/c"),
        ("nothing", {"push": "net"}, "--push net has no owner: write OWNER/net"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path, what, settings, message):
    finished_run(tmp_path / "run")
    spoil(tmp_path / "run", what)
    with pytest.raises(UserError, match=message):
        export_hub(tmp_path / "run", tmp_path / "out", **settings)
    assert os.listdir(tmp_path) == ["run"]


def test_an_output_that_exists_is_not_touched(tmp_path):
    finished_run(tmp_path / "run")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(UserError, match="out exists already"):
        export_hub(tmp_path / "run", tmp_path / "out")
    assert everything_below(tmp_path / "out") == {"mine"}


def test_an_output_below_a_file_is_refused(tmp_path):
    finished_run(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="out cannot be written"):
        export_hub(tmp_path / "run", tmp_path / "file" / "out")


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    finished_run(tmp_path / "run")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(hub, "model_card", full)
    with pytest.raises(UserError, match="out cannot be written: No space left"):
        export_hub(tmp_path / "run", tmp_path / "out")
    assert os.listdir(tmp_path) == ["run"]


def test_other_nets_are_not_taken_from_insightface(tmp_path):
    with pytest.raises(UserError, match="--name vit"):
        import_insightface(tmp_path / "backbone.pth", tmp_path / "out", "vit")
