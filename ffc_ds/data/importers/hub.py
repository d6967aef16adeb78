"""Upload a prepared folder to the Hugging Face hub, with a dataset card."""

from pathlib import Path

import huggingface_hub
import numpy as np

from ffc_ds.data.importers.inspection import FIGURE, Inspection, examine, long_tail, long_tail_figure, span
from ffc_ds.errors import UserError

UPLOADED = ["train-*.parquet", "README.md", FIGURE]
CARD = """\
---
{metadata}
---
# {name}

{images:,} images of {identities:,} identities, for training identity embeddings.

| column | |
|---|---|
| `image` | the encoded image, byte for byte as in the source |
| `label` | number of the identity, from 0 |
| `identity` | name of the identity in the source |

```python
from datasets import load_dataset

images = load_dataset("{repo}", split="train")
```

An identity has {mean:.1f} images in the mean, {median:g} in the median and {most:,} at most. {repeated:,} images repeat
the bytes of another one, {shared:,} of them under another identity.

| images of an identity | identities |
|---|---|
{tail}

![images per identity]({figure})

The images show people. Their licence and the conditions of their use are those of the source.
"""


def push(folder: str, repo: str, private: bool = True, workers: int | None = None) -> None:
    """Upload parquet files with a card, which is left alone if there is a README.md; interrupted, it goes on.

    Args:
        folder: holds train-*.parquet.
        repo: OWNER/NAME of the dataset on the hub, which is made if need be.
        private: whether a repository that is made is private.
        workers: processes that look at the images for the card; by default one for each core.
    """
    try:
        huggingface_hub.utils.validate_repo_id(repo)
    except huggingface_hub.errors.HFValidationError as error:
        raise UserError(f"{repo} cannot be a name on the hub ({error}): give OWNER/NAME") from error
    if huggingface_hub.get_token() is None:
        raise UserError("there is no token of the hub: run `hf auth login`, or set HF_TOKEN")
    if not any(Path(folder).glob("train-*.parquet")):
        raise UserError(f"there is no train-*.parquet in {folder}: give a folder that prepare_data.py has finished")
    write_card(Path(folder), repo, workers)
    try:
        hub = huggingface_hub.HfApi()
        hub.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, repo_type="dataset", allow_patterns=UPLOADED)
    except Exception as error:  # the HTTP client's own kinds of error change with its version
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"the upload to {repo} stopped ({reason}): the same command goes on") from error
    print(f"uploaded to https://huggingface.co/datasets/{repo}")


def write_card(folder: Path, repo: str, workers: int | None) -> None:
    """Write README.md and its figure if there is no README.md."""
    if not (folder / "README.md").exists():
        found = examine(str(folder), "train", "header", workers)
        long_tail_figure(found.images_per_identity, folder / FIGURE)
        (folder / "README.md").write_text(card(found, repo))


def card(found: Inspection, repo: str) -> str:
    """The dataset card, with the hub's metadata in front."""
    counts, name = found.images_per_identity, repo.rpartition("/")[2]
    metadata = huggingface_hub.DatasetCardData(
        pretty_name=name,
        size_categories=[_size_category(found.images)],
        task_categories=["image-feature-extraction"],
        tags=["face-recognition"],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "train-*.parquet"}]}],
    )
    tail = "\n".join(f"| {span(low, high)} | {n:,} |" for low, high, n in long_tail(counts))
    numbers = {"mean": counts.mean(), "median": np.median(counts), "most": counts.max()}
    numbers |= {key: getattr(found, key) for key in ("images", "identities", "repeated", "shared")}
    return CARD.format(metadata=metadata.to_yaml(), name=name, repo=repo, tail=tail, figure=FIGURE, **numbers)


def _size_category(images: int) -> str:
    """The hub's name for a size, such as 10K<n<100K."""
    steps = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    power = max(len(str(images)) - 3, 0)
    if power == 0:
        return "n<1K"
    return f"{steps[power - 1]}<n<{steps[power]}" if power < len(steps) else "n>1T"
