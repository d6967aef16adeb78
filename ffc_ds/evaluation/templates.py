"""A model that turns images, and templates of images, into features, on all ranks together."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ffc_ds.data.bounds import MAX_MEGAPIXELS, CorruptImage
from ffc_ds.data.decoding import decode
from ffc_ds.distributed import rank, together, world_size
from ffc_ds.embedding import embed
from ffc_ds.encoders.base import Encoder
from ffc_ds.errors import shared
from ffc_ds.progress import progress

CHUNK = 1 << 14  # images whose features are in memory at once: 32 MiB at 512 dimensions


@dataclass(frozen=True, eq=False)
class Templates:
    """Sets of images that stand for one face each: a picture alone, the frames of a video, a template of IJB.

    images: `data.faces.Faces`, or anything that reads like it.
    group: int64 [images], the template (0 to count - 1) of each image; every template has one or more.
    weight: float64 [images], of each image's feature in the sum over its template.
    unit: features are scaled to length 1 before they are added; otherwise their length weighs them too.
    """

    images: object
    group: np.ndarray
    weight: np.ndarray
    unit: bool = True

    @classmethod
    def means(cls, images, group: np.ndarray) -> "Templates":
        """Templates that are the mean of the features of their images."""
        return cls(images, group, 1 / np.bincount(group)[group])

    @property
    def count(self) -> int:
        return int(self.group.max()) + 1

    def first_image(self, template: int) -> int:
        """The image of a template that weighs most, the first of equals."""
        members = np.flatnonzero(self.group == template)
        return int(members[self.weight[members].argmax()])


@dataclass(frozen=True)
class Embedder:
    """A model, whole on each rank, with all that it takes to embed. Ranks call the same methods in the same order.

    batch_size: images per rank and forward. flip: add the features of an image and its mirror image, as the field's
    protocols do. progress: show a bar on rank 0. max_megapixels: larger images are refused.
    """

    encoder: Encoder
    batch_size: int = 64
    flip: bool = True
    progress: bool = False
    max_megapixels: float = MAX_MEGAPIXELS

    def chunks(self, images, unit: bool = True) -> Iterator[tuple[int, np.ndarray]]:
        """Features of all `images` in order, as (first image, float32 [at most CHUNK, D]), equal on all ranks.

        Raises UserError for a damaged image, naming it, and for features that are not finite.
        """
        total, world = len(images), world_size()
        batch_size = min(self.batch_size, -(-total // world))
        shown = self.progress and rank() == 0
        with progress(desc=f"embed {images.name}", unit="images", total=total, leave=False, shown=shown) as bar:

            def counted(batches):
                for pixels in batches:
                    yield pixels
                    bar.update(len(pixels) * world)

            for start in range(0, total, CHUNK):
                rows = np.arange(start, min(start + CHUNK, total))
                features = embed(
                    self.encoder,
                    images,
                    rows,
                    self.encoder.image_size,
                    batch_size,
                    mirror=self.flip,
                    unit=unit,
                    progress=counted,
                    max_megapixels=self.max_megapixels,
                    # A damaged image is found by the rank that reads it.
                    alone=lambda own, rows=rows: together(lambda: self._naming(own, images, rows)),
                )
                features = features.cpu().numpy()
                if not np.isfinite(features).all():
                    raise shared(f"the model's embeddings of {images.name} are not finite: it cannot be evaluated")
                yield start, features

    def templates(self, templates: Templates) -> np.ndarray:
        """Unit features of templates: float32 [count, D], the weighted sums over their images scaled to length 1."""
        total = None
        for start, features in self.chunks(templates.images, templates.unit):
            part = slice(start, start + len(features))
            if total is None:
                total = torch.zeros(templates.count, features.shape[1], dtype=torch.float64)
            weighted = torch.from_numpy(features) * torch.from_numpy(templates.weight[part])[:, None]
            total.index_add_(0, torch.from_numpy(templates.group[part]), weighted)
        return F.normalize(total, dim=1).float().numpy()

    def picture(self, images, row: int, size: int) -> np.ndarray:
        """An image to look at, uint8 [size, size, 3]."""
        return decode(images.encoded([row])[0], size, max_megapixels=self.max_megapixels)

    def _naming(self, action: Callable[[], Tensor], images, rows: np.ndarray) -> Tensor:
        """What the action returns, or its error with the path of the damaged image, where it has one."""
        try:
            return action()
        except CorruptImage:
            for row in rows if hasattr(images, "path") else ():
                try:
                    self.picture(images, row, 8)
                except CorruptImage as found:
                    raise CorruptImage(f"{images.path(row)}: {found}") from None
            raise
