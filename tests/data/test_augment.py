import numpy as np
import pytest
import torch

from ffc_ds.data.augment import to_input


def reference(image, flip=False, down=0, right=0):
    """One image at a time: output pixel (y, x) shows input pixel (y + down, x + right), the nearest edge outside."""
    size = len(image)
    out = torch.empty(3, size, size)
    for y in range(size):
        for x in range(size):
            source_x = size - 1 - x if flip else x
            pixel = image[min(max(y + down, 0), size - 1), min(max(source_x + right, 0), size - 1)]
            out[:, y, x] = pixel.float() / 127.5 - 1
    return out


@pytest.fixture
def images():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 5, 9, 9, 3), dtype=np.uint8))


def test_range_shape_and_layout(images):
    result = to_input(images)
    assert result.shape == (10, 3, 9, 9) and result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(result, torch.stack([reference(image) for image in images.flatten(0, 1)]), atol=1e-6)
    extremes = to_input(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 4, 4, 3))
    assert extremes[0].unique().tolist() == [-1] and extremes[1].unique().tolist() == [1]


def test_flips_and_shifts(images):
    flips = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 1]], dtype=torch.bool)
    shifts = torch.arange(0, 240, 12, dtype=torch.uint8).view(2, 5, 2)
    result = to_input(images, flips, shifts, shift=2)
    offsets = (shifts.double() / 256 * 5).floor().long().flatten(0, 1) - 2
    expected = [
        reference(image, flip, *offset)
        for image, flip, offset in zip(images.flatten(0, 1), flips.flatten(), offsets.tolist(), strict=True)
    ]
    assert torch.allclose(result, torch.stack(expected), atol=1e-6)
    assert torch.allclose(to_input(images, flips)[1], reference(images[0, 1], True), atol=1e-6)


def test_shifts_are_uniform_over_the_offsets():
    from ffc_ds.data.augment import _pixels

    counts = torch.unique(_pixels(torch.arange(256, dtype=torch.uint8).repeat(4), 3), return_counts=True)
    assert counts[0].tolist() == list(range(-3, 4)) and counts[1].max() - counts[1].min() <= 4


def test_input_is_left_alone_and_half_precision_is_close(images):
    before = images.clone()
    half = to_input(images, torch.ones(2, 5, dtype=torch.bool), dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and torch.equal(images, before)
    assert torch.allclose(half.float(), to_input(images.flip(3)), atol=4e-3)
