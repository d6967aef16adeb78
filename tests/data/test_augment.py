import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from ffc_ds.config.settings import DataConfig
from ffc_ds.data import augment
from ffc_ds.data.augment import to_input
from ffc_ds.data.sampler import RANDOM_BYTES

OPTIONS = ("low_resolution", "blur", "grey", "colour", "erase")


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


@pytest.fixture
def random_bytes():
    return torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 5, RANDOM_BYTES), dtype=np.uint8))


def test_range_shape_and_layout(images):
    result = to_input(images)
    assert result.shape == (10, 3, 9, 9) and result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(result, torch.stack([reference(image) for image in images.flatten(0, 1)]), atol=1e-6)
    extremes = to_input(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 4, 4, 3))
    assert extremes[0].unique().tolist() == [-1] and extremes[1].unique().tolist() == [1]


def test_flips_and_shifts(images, random_bytes):
    flips = torch.tensor([[0, 1, 0, 1, 1], [1, 0, 0, 0, 1]], dtype=torch.bool)
    random_bytes[..., :2] = torch.arange(0, 240, 12, dtype=torch.uint8).view(2, 5, 2)
    result = to_input(images, flips, random_bytes, DataConfig(shift=2))
    offsets = (random_bytes[..., :2].double() / 256 * 5).floor().long().flatten(0, 1) - 2
    expected = [
        reference(image, flip, *offset)
        for image, flip, offset in zip(images.flatten(0, 1), flips.flatten(), offsets.tolist(), strict=True)
    ]
    assert torch.allclose(result, torch.stack(expected), atol=1e-6)
    assert torch.allclose(to_input(images, flips)[1], reference(images[0, 1], True), atol=1e-6)
    assert torch.equal(to_input(images, flips, options=DataConfig(flip=False)), to_input(images))


def test_shifts_are_uniform_over_the_offsets():
    counts = torch.unique(augment._pixels(torch.arange(256, dtype=torch.uint8).repeat(4), 3), return_counts=True)
    assert counts[0].tolist() == list(range(-3, 4)) and counts[1].max() - counts[1].min() <= 4


@pytest.mark.parametrize("share", [0, 0.001, 0.2, 1])
def test_the_share_of_chosen_images_is_exact(share):
    number = torch.arange(65536)
    every = torch.stack([0 * number, number // 256, number % 256], 1).to(torch.uint8)
    assert augment._chosen(every, 1, share).sum() == math.ceil(65536 * share)


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_that_are_not_chosen_keep_their_pixels_exactly(images, random_bytes, option, dtype):
    images = images.repeat(1, 1, 4, 4, 1)
    plain, result = (
        to_input(images, random_bytes=random_bytes, options=DataConfig(**{option: share}), dtype=dtype)
        for share in (0, 0.5)
    )
    chosen = random_bytes[..., getattr(augment, option.upper())].flatten() < 128
    assert 0 < chosen.sum() < len(chosen)
    assert torch.equal(plain[~chosen], result[~chosen]) and not torch.equal(plain[chosen], result[chosen])
    assert result.dtype == dtype and result.is_contiguous(memory_format=torch.channels_last)
    assert result.abs().max() <= 1


def low_resolution(image, bytes_):
    size, share = len(image), (bytes_[augment.LOW_RESOLUTION + 2] + 0.5) / 256
    small = round(size * (augment.SMALLEST + (1 - augment.SMALLEST) * share))
    channels = [Image.fromarray(channel) for channel in image.transpose(2, 0, 1)]  # of mode F: no rounding
    for side in (small, size):
        channels = [channel.resize((side, side), Image.Resampling.BILINEAR) for channel in channels]
    return np.stack([np.asarray(channel) for channel in channels], -1)


def blur(image, bytes_):
    width = len(image) * augment.WIDEST * (0.1 + 0.9 * (bytes_[augment.BLUR + 2] + 0.5) / 256)
    settings = {"sigma": (width, width, 0), "mode": "constant", "truncate": 50}
    return gaussian_filter(image, **settings) / gaussian_filter(np.ones_like(image), **settings)


def grey(image, bytes_):
    return np.repeat(image @ np.array([[0.299], [0.587], [0.114]]), 3, axis=2)


def colour(image, bytes_, turned_grey=False):
    at = augment.COLOUR
    brightness, contrast, saturation = 1 + augment.JITTER * (2 * (bytes_[at + 2 : at + 5] + 0.5) / 256 - 1)
    image, saturation = brightness * image, 0 if turned_grey else saturation
    image = saturation * image + (1 - saturation) * grey(image, bytes_)
    mean = (image @ np.array([0.299, 0.587, 0.114])).mean()
    return (contrast * image + (1 - contrast) * mean).clip(0, 255)


def crop(image, bytes_, most=1):
    side, down, right = (bytes_[augment.CROP : augment.CROP + 3] + 0.5) / 256
    size, side = len(image), len(image) * (1 - most * (1 - side))
    top, left = (size - side) * down, (size - side) * right
    channels = [Image.fromarray(channel) for channel in image.transpose(2, 0, 1)]
    box = left, top, left + side, top + side
    return np.stack([np.asarray(c.resize((size, size), Image.Resampling.BILINEAR, box)) for c in channels], -1)


def erase(image, bytes_):
    area, ratio, down, right = (bytes_[augment.ERASE + 2 : augment.ERASE + 6] + 0.5) / 256
    low, high = augment.AREA
    area = low + (high - low) * area
    ratio = min(augment.RATIO, 1 / area) ** (2 * ratio - 1)
    image, size = image.copy(), len(image)
    height, width = (max(1, round(size * math.sqrt(side))) for side in (area * ratio, area / ratio))
    top, left = int((size - height + 1) * down), int((size - width + 1) * right)
    for y in range(top, top + height):
        for x in range(left, left + width):
            image[y, x] = bytes_[augment.ERASE + 6 : augment.ERASE + 9]
    return image


@pytest.mark.parametrize("function", [low_resolution, blur, grey, colour, crop, erase])
def test_each_change_is_that_of_a_slow_reference(function, random_bytes):
    y, x = np.mgrid[:24, :24] / 24
    smooth = np.stack([200 * x + 20, 180 * y + 30, 100 * (x + y) / 2 + 60], -1)
    noise = np.random.default_rng(2).normal(0, 40, (10, 24, 24, 3))
    images = (smooth + noise).clip(0, 255).astype(np.uint8)
    random_bytes = random_bytes.flatten(0, 1)
    result = to_input(torch.from_numpy(images), None, random_bytes, DataConfig(**{function.__name__: 1}))
    expected = np.stack(
        [function(image.astype(np.float32), each) for image, each in zip(images, random_bytes.numpy(), strict=True)]
    )
    difference = (result * 127.5 + 127.5).permute(0, 2, 3, 1).numpy() - expected
    assert np.abs(difference).max() < 2e-2
    assert np.abs(expected - images).mean() > 1


def test_all_together_is_one_after_another(random_bytes):
    images = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8))
    random_bytes = random_bytes.flatten(0, 1)
    flips = torch.arange(10) % 2 == 0
    settings = {"low_resolution": 0.6, "blur": 0.5, "grey": 0.3, "colour": 0.4, "erase": 0.5}
    result = to_input(images, flips, random_bytes, DataConfig(shift=3, crop=0.3, **settings)) * 127.5 + 127.5
    expected = (to_input(images, flips, random_bytes, DataConfig(shift=3)) * 127.5 + 127.5).permute(0, 2, 3, 1).numpy()
    combinations = set()
    for image, bytes_, found in zip(expected, random_bytes.numpy(), result, strict=True):
        chosen = {
            name: 256 * bytes_[place].astype(int) + bytes_[place + 1] < 65536 * settings[name]
            for name, place in ((name, getattr(augment, name.upper())) for name in OPTIONS)
        }
        combinations.add(tuple(chosen.values()))
        if chosen["colour"]:
            image = colour(image, bytes_, chosen["grey"])
        elif chosen["grey"]:
            image = grey(image, bytes_)
        image = crop(image.astype(np.float32), bytes_, 0.3)
        for function in (blur, low_resolution, erase):
            image = function(image.astype(np.float32), bytes_) if chosen[function.__name__] else image
        assert np.abs(found.permute(1, 2, 0).numpy() - image).max() < 2e-2
    assert len(combinations) > 5


@pytest.mark.parametrize("size", [16, 33])
def test_rectangles_lie_inside_and_have_the_areas_and_places_that_they_should(size):
    number = 4000
    random_bytes = torch.from_numpy(np.random.default_rng(4).integers(0, 256, (number, RANDOM_BYTES), dtype=np.uint8))
    images = torch.zeros(number, size, size, 3)
    random_bytes[:, augment.ERASE + 6 :] = 255
    covered = augment._erased(images, random_bytes, 1)[..., 0] == 255
    height, width = (covered.any(dim).sum(1) for dim in (2, 1))
    assert torch.equal(covered.sum((1, 2)), height * width)  # whole rectangles, nothing cut off
    assert abs((height * width / size**2).mean() - sum(augment.AREA) / 2) < 0.01
    assert height.max() <= size and (height > width).float().mean() > 0.4 < (width > height).float().mean()
    edges = covered.float().mean(0)
    assert torch.allclose(edges, edges.flip(0), atol=0.04) and torch.allclose(edges, edges.T, atol=0.04)


def test_a_batch_can_be_cut_anywhere(images, random_bytes):
    """So that its parts on several ranks show what the whole shows on one."""
    options = DataConfig(shift=1, crop=0.3, **dict.fromkeys(OPTIONS, 0.5))
    images, random_bytes = images.flatten(0, 1), random_bytes.flatten(0, 1)
    whole = to_input(images, random_bytes=random_bytes, options=options)
    parts = [to_input(images[s], random_bytes=random_bytes[s], options=options) for s in (slice(3), slice(3, 10))]
    assert torch.allclose(torch.cat(parts), whole, atol=1e-6)


def test_the_host_need_not_know_what_is_chosen(images, random_bytes):
    # A tensor without data refuses whatever depends on values: masks as indices, item(), branches.
    options = DataConfig(shift=1, crop=0.2, **dict.fromkeys(OPTIONS, 0.5))
    flips = torch.zeros(2, 5, dtype=torch.bool)
    shape = to_input(images.to("meta"), flips.to("meta"), random_bytes.to("meta"), options).shape
    assert shape == (10, 3, 9, 9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_device_does_not_make_the_host_wait(images, random_bytes):
    options = DataConfig(shift=1, crop=0.2, **dict.fromkeys(OPTIONS, 0.5))
    inputs = [tensor.cuda() for tensor in (images, torch.zeros(2, 5, dtype=torch.bool), random_bytes)]
    expected = to_input(images, torch.zeros(2, 5, dtype=torch.bool), random_bytes, options)
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = to_input(*inputs, options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.allclose(result.cpu(), expected, atol=1e-4)


def test_input_is_left_alone_and_half_precision_is_close(images):
    before = images.clone()
    half = to_input(images, torch.ones(2, 5, dtype=torch.bool), dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16 and torch.equal(images, before)
    assert torch.allclose(half.float(), to_input(images.flip(3)), atol=4e-3)
