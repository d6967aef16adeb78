"""From uint8 pixels to the network's input, augmented in batches on the device that holds them.

What happens to an image is in its random bytes. They change values only, never a shape, so the host need not know them.
"""

import torch
from torch import Tensor

from ffc_ds.config.settings import DataConfig

# Which of an image's random bytes stand for what: two say whether, the others how much and where.
SHIFT, BLUR, LOW_RESOLUTION, GREY, COLOUR, CROP, ERASE = slice(0, 2), 2, 5, 8, 10, 15, 18
WIDEST = 0.02  # blur: standard deviation, a share of the image's side, from a tenth of this to all of it
SMALLEST = 0.2  # low resolution: share of the side that is left, from this to 1 (AdaFace, arXiv 2204.00964)
AREA, RATIO = (0.02, 0.4), 10 / 3  # erase: share of the image, and longer by shorter side (arXiv 1708.04896)
JITTER = 0.5  # colour: brightness, contrast and saturation are multiplied by 1 - JITTER to 1 + JITTER (AdaFace too)
NOTHING = DataConfig()


def to_input(
    images: Tensor,
    flips: Tensor | None = None,
    random_bytes: Tensor | None = None,
    options: DataConfig = NOTHING,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Mirror, augment and normalise images.

    Args:
        images: uint8 [..., S, S, 3].
        flips: bool [...], mirrored left to right where true, unless the options say that it shows something else.
        random_bytes: uint8 [..., RANDOM_BYTES of the sampler]; needed for all options.
        options: the largest shift (each of -shift..shift pixels equally likely, edge pixels repeated), what crop takes
            off a side at most, and the shares of images that low_resolution, blur, grey, colour and erase change; the
            others keep their pixels exactly.
        dtype: of the result.
    Returns:
        [n, 3, S, S] in [-1, 1], n the product of the leading dimensions; channels-last in memory.
    """
    images = images.reshape(-1, *images.shape[-3:])
    if random_bytes is not None:
        random_bytes = random_bytes.flatten(0, -2)
    if options.shift:
        images = _shifted(images, _pixels(random_bytes[:, SHIFT], options.shift))
    if flips is not None and options.flip:
        images = torch.where(flips.reshape(-1, 1, 1, 1), images.flip(2), images)
    if options.grey or options.colour:
        images = _recoloured(images, random_bytes, options)
    if options.crop or options.blur or options.low_resolution:
        images = _resampled(images, random_bytes, options)
    if options.erase:
        images = _erased(images, random_bytes, options.erase)
    return images.permute(0, 3, 1, 2).to(dtype, memory_format=torch.channels_last).sub_(127.5).div_(127.5)


def _pixels(random_bytes: Tensor, shift: int) -> Tensor:
    """Uniform bytes to integers in -shift..shift."""
    return random_bytes.long() * (2 * shift + 1) // 256 - shift


def _chosen(random_bytes: Tensor, place: int, share: float) -> Tensor:
    """Bool [n, 1, 1]: true for that share of the images."""
    high, low = random_bytes[:, place : place + 2, None, None].int().unbind(1)
    return 256 * high + low < 65536 * share


def _between(random_bytes: Tensor, place: int, low: float, high: float) -> Tensor:
    """Float [n, 1, 1], uniform."""
    return low + (high - low) * (random_bytes[:, place, None, None] + 0.5) / 256


def _shifted(images: Tensor, offsets: Tensor) -> Tensor:
    number, size = images.shape[:2]
    pixels = torch.arange(size, device=images.device)
    rows, columns = (offsets[:, :, None] + pixels).clamp_(0, size - 1).unbind(1)
    rows += size * torch.arange(number, device=images.device)[:, None]
    # One flat index of pixels is several times faster than indexing three dimensions.
    source = size * rows[:, :, None] + columns[:, None, :]
    return images.reshape(-1, 3).index_select(0, source.flatten()).view_as(images)


def _recoloured(images: Tensor, random_bytes: Tensor, options: DataConfig) -> Tensor:
    """Brightness, saturation, then contrast; grey is a saturation of 0."""
    jittered, turned_grey = _chosen(random_bytes, COLOUR, options.colour), _chosen(random_bytes, GREY, options.grey)
    brightness, contrast, saturation = (
        torch.where(jittered, _between(random_bytes, COLOUR + place, 1 - JITTER, 1 + JITTER), 1) for place in (2, 3, 4)
    )
    saturation = torch.where(turned_grey, 0, saturation)
    red, green, blue = (images * brightness[..., None]).unbind(-1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    mean = luma.mean((1, 2), keepdim=True)
    changed = [mean + contrast * (luma + saturation * (colour - luma) - mean) for colour in (red, green, blue)]
    return torch.where((jittered | turned_grey)[..., None], torch.stack(changed, -1).clamp_(0, 255), images)


def _resampled(images: Tensor, random_bytes: Tensor, options: DataConfig) -> Tensor:
    """Crop, blur, then low resolution. All are weighted means of rows and of columns, so matrices from pixels to
    pixels."""
    size = images.shape[1]
    pixels = torch.arange(size, device=images.device, dtype=torch.float32)
    identity = torch.eye(size, device=images.device)
    weights = identity.expand(len(images), -1, -1)
    if options.blur:
        width = size * WIDEST * _between(random_bytes, BLUR + 2, 0.1, 1)
        weights = torch.where(_chosen(random_bytes, BLUR, options.blur), _gaussian(pixels, width), identity)
    if options.low_resolution:
        side = (size * _between(random_bytes, LOW_RESOLUTION + 2, SMALLEST, 1)).round()
        shrunk = _chosen(random_bytes, LOW_RESOLUTION, options.low_resolution)
        weights = torch.where(shrunk, _down_and_up(pixels, side), identity) @ weights
    rows = columns = weights
    if options.crop:
        side = _between(random_bytes, CROP, 1 - options.crop, 1)
        top, left = ((size - size * side) * _between(random_bytes, CROP + place, 0, 1) for place in (1, 2))
        rows, columns = weights @ _window(pixels, top, side), weights @ _window(pixels, left, side)
    return torch.einsum("nij,njkc,nlk->nilc", rows, images.float(), columns)


def _window(pixels: Tensor, start: Tensor, ratio: Tensor) -> Tensor:
    """[n, S, S]: bilinear, the pixels from `start` on, `ratio` of S of them ([n, 1, 1] both), enlarged to S."""
    places = (start + (pixels[:, None] + 0.5) * ratio - 0.5).clamp(0, len(pixels) - 1)
    return (1 - (pixels - places).abs()).clamp(min=0)


def _erased(images: Tensor, random_bytes: Tensor, share: float) -> Tensor:
    """A rectangle of one random colour, anywhere inside: its area uniform, its ratio log-uniform as far as it fits."""
    size = images.shape[1]
    pixels = torch.arange(size, device=images.device)
    area = _between(random_bytes, ERASE + 2, *AREA)
    ratio = area.reciprocal().clamp(max=RATIO) ** _between(random_bytes, ERASE + 3, -1, 1)
    inside = []
    for place, side in ((4, area * ratio), (5, area / ratio)):
        length = (size * side.sqrt()).round().clamp(1, size)
        start = ((size - length + 1) * _between(random_bytes, ERASE + place, 0, 1)).floor()
        inside.append((start <= pixels) & (pixels < start + length))
    rows, columns = inside
    covered = _chosen(random_bytes, ERASE, share) & rows.transpose(1, 2) & columns
    return torch.where(covered[..., None], random_bytes[:, None, None, ERASE + 6 : ERASE + 9], images)


def _gaussian(pixels: Tensor, width: Tensor) -> Tensor:
    return _means(((pixels - pixels[:, None]) / width).square().div(-2).exp())


def _down_and_up(pixels: Tensor, side: Tensor) -> Tensor:
    """[n, S, S]: bilinear with antialiasing to `side` pixels ([n, 1, 1], integers of at most S), and back to S."""
    size = len(pixels)
    ratio = size / side
    centers = ((pixels[:, None] + 0.5) * ratio).clamp(max=size)  # small pixels beyond the side are never looked at
    down = _means((1 - (pixels + 0.5 - centers).abs() / ratio).clamp(min=0))
    places = torch.minimum(((pixels[:, None] + 0.5) / ratio - 0.5).clamp(min=0), side - 1)
    up = (1 - (pixels - places).abs()).clamp(min=0)
    return up @ down


def _means(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)
