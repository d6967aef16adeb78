"""Which images a step sees: arithmetic on the step number, so any rank or resumed run gets the same answer."""

from dataclasses import dataclass

import numpy as np

from ffc_ds.config.settings import Config
from ffc_ds.data.identity_index import IdentityIndex
from ffc_ds.data.randomness import integers_below, mix, permute
from ffc_ds.errors import UserError

LOADERS = ("dual", "id", "instance")
WORDS = 4  # of 64 random bits for each row
RANDOM_BYTES = 8 * WORDS - 1  # of them are for `augment.to_input`, one for the flip
ID_ORDER, ID_IMAGES, ID_VIEWS, INSTANCE_ORDER, INSTANCE_VIEWS = range(5)
VIEWS = np.array([[0], [1]])


@dataclass(frozen=True)
class StepPlan:
    """The global batch of one step: two views of R rows.

    Attributes:
        images: int64 [2, R], dataset rows.
        identities: int64 [2, R], dense identities.
        flips: bool [2, R], whether the image is mirrored.
        bytes: uint8 [2, R, RANDOM_BYTES], uniform, which `augment.to_input` turns into all other augmentation.
    """

    images: np.ndarray
    identities: np.ndarray
    flips: np.ndarray
    bytes: np.ndarray


def most_identities(images: int, images_of_each: int) -> int:
    """Identities that so many images of a batch show at most; images_of_each: 1 where some are drawn singly."""
    return images // images_of_each


class Sampler:
    """Plans the steps of a run over an identity index.

    Id rows take each identity once per epoch and show `images_per_identity` different images of it, in neighbouring
    rows of both views; an identity that has fewer shows them again, each time mirrored against the time before.
    Instance rows take each image once per epoch, other images in the two views. The "dual" loader of F2C
    (arXiv 2105.10375) joins both.

    Args:
        index: the identities to draw from.
        batch_size: images of one global step, both views together.
        loader: "dual", "id" (id rows only) or "instance" (instance rows only).
        id_share: share of id rows in the dual loader; the paper draws as many identities as images, which is 2/3.
        seed: of every random choice.
        images_per_identity: even; half of them in each view.
    Raises:
        UserError: a size, share or name out of bounds, or id rows that cannot hold whole identities.
    """

    def __init__(
        self,
        index: IdentityIndex,
        batch_size: int,
        loader: str = "dual",
        id_share: float = 2 / 3,
        seed: int = 0,
        images_per_identity: int = 2,
    ):
        if batch_size < 2 or batch_size % 2:
            raise UserError(f"the global batch size {batch_size} must be even and at least 2: it is split in two views")
        if loader not in LOADERS:
            raise UserError(f"unknown loader {loader!r}: choose one of {', '.join(LOADERS)}")
        if not 0 <= id_share <= 1:
            raise UserError(f"the id share {id_share} must lie between 0 and 1")
        if images_per_identity < 2 or images_per_identity % 2:
            raise UserError(f"{images_per_identity} images per identity must be an even number: half for each view")
        if loader == "id" and batch_size % images_per_identity:
            below = batch_size // images_per_identity * images_per_identity
            raise UserError(
                f"the global batch size {batch_size} is no multiple of {images_per_identity} images per identity: "
                f"choose {f'{below} or ' if below else ''}{below + images_per_identity}"
            )
        self.index, self.batch_size, self.seed, self.images_per_identity = index, batch_size, seed, images_per_identity
        self.rows, self.rows_each = batch_size // 2, images_per_identity // 2
        share = {"dual": id_share, "id": 1, "instance": 0}[loader]
        self.identities_per_step = min(round(self.rows * share / self.rows_each), self.rows // self.rows_each)
        self.id_rows = self.identities_per_step * self.rows_each
        self.instance_rows = self.rows - self.id_rows
        # Both kinds are spread evenly over the view, so that every rank's contiguous part holds the same mix.
        places = np.r_[np.repeat(_midpoints(self.identities_per_step), self.rows_each), _midpoints(self.instance_rows)]
        self._order = np.argsort(places, kind="stable")

    def most_identities(self, rows: int) -> int:
        """Identities that a micro-batch of so many rows of each view shows at most."""
        return most_identities(2 * rows, 1 if self.instance_rows else self.images_per_identity)

    def plan(self, step: int) -> StepPlan:
        """The global batch of `step`; a pure function, so steps can be asked for in any order by any process."""
        return self.plans(np.array([step]))[0]

    def plans(self, steps: np.ndarray) -> list[StepPlan]:
        """The global batches of `steps` (int64 [k]). Several at once cost little more than one, unless it is large."""
        steps = np.asarray(steps)[:, None, None]
        parts = zip(self._id_part(steps), self._instance_part(steps), strict=True)
        fields = (np.concatenate(part, axis=2).take(self._order, axis=2) for part in parts)
        return [StepPlan(*of_one) for of_one in zip(*fields, strict=True)]

    def steps_for(self, epochs: float) -> int:
        """The number of steps (at least 1) that see `epochs` times as many images as there are."""
        return max(1, round(epochs * len(self.index.images) / self.batch_size))

    def _id_part(self, steps: np.ndarray) -> tuple[np.ndarray, ...]:
        index, per_identity = self.index, self.images_per_identity
        draws = steps * self.identities_per_step + np.arange(self.identities_per_step)
        identities = self._shuffled(draws, index.identities, ID_ORDER).swapaxes(1, 2)
        starts, counts = index.offsets[identities], index.offsets[identities + 1] - index.offsets[identities]
        bits = mix(self.seed, ID_IMAGES, VIEWS, draws)[..., None]
        first = integers_below(bits[:, 0], counts)
        stride = 1 + integers_below(bits[:, 1], np.maximum(counts - 1, 1))
        turn, place = np.divmod(np.arange(per_identity), counts)
        # Strides close a circle after counts / gcd images; the next circle starts one image further.
        chosen = (first + place * stride + place * np.gcd(stride, counts) // counts) % counts
        flips, random_bytes = self._augmentation(ID_VIEWS, steps * self.id_rows + np.arange(self.id_rows))
        flips = np.take_along_axis(flips.swapaxes(1, 2).reshape(chosen.shape), place, axis=2) ^ (turn % 2 == 1)
        of_images = index.images[starts + chosen], np.broadcast_to(identities, chosen.shape), flips
        # The images of an identity go to the two views in turn.
        return *(part.reshape(len(steps), -1, 2).swapaxes(1, 2) for part in of_images), random_bytes

    def _instance_part(self, steps: np.ndarray) -> tuple[np.ndarray, ...]:
        number = self.instance_rows
        positions = 2 * steps * number + np.arange(2 * number).reshape(2, number)
        entries = self._shuffled(positions, len(self.index.images), INSTANCE_ORDER)
        augmentation = self._augmentation(INSTANCE_VIEWS, positions)
        return self.index.images[entries], self.index.image_identity(entries), *augmentation

    def _shuffled(self, positions: np.ndarray, length: int, stream: int) -> np.ndarray:
        """Walk range(length) epoch after epoch, each in an order of its own."""
        return permute(positions % length, length, mix(self.seed, stream, positions // length))

    def _augmentation(self, stream: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Flips bool [k, 2, n] and random bytes uint8 [k, 2, n, RANDOM_BYTES] of both views."""
        row = self.seed, stream, VIEWS, positions
        words = np.stack([mix(*row), *(mix(*row, word) for word in range(1, WORDS))], -1)
        random_bytes = words.astype("<u8").view(np.uint8)
        return (random_bytes[..., 0] & 1).astype(bool), random_bytes[..., 1:]


def _midpoints(number: int) -> np.ndarray:
    return (np.arange(number) + 0.5) / max(number, 1)


def sampler_of(config: Config, index: IdentityIndex) -> Sampler:
    """That of a run. Raises UserError for settings that do not go together."""
    data = config.data
    return Sampler(index, data.batch_size, config.loader, data.id_share, config.seed, data.images_per_identity)
