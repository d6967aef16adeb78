"""From uint8 pixels to the network's input, batched on the device."""

import torch


def to_input(
    images: torch.Tensor,
    flips: torch.Tensor | None = None,
    shifts: torch.Tensor | None = None,
    shift: int = 0,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Mirror, shift and normalise images on the device that holds them.

    Args:
        images: uint8 [..., S, S, 3].
        flips: bool [...], mirrored left to right where true.
        shifts: uint8 [..., 2], uniform bytes for the vertical and horizontal shift; needed when `shift` > 0.
        shift: the largest shift in pixels (each of -shift..shift equally likely, edge pixels repeated), 0 for none.
        dtype: of the result.
    Returns:
        [n, 3, S, S] in [-1, 1], n the product of the leading dimensions; channels-last in memory.
    """
    images = images.reshape(-1, *images.shape[-3:])
    if shift:
        images = _shifted(images, _pixels(shifts.reshape(-1, 2), shift))
    if flips is not None:
        images = torch.where(flips.reshape(-1, 1, 1, 1), images.flip(2), images)
    return images.permute(0, 3, 1, 2).to(dtype).sub_(127.5).div_(127.5)


def _pixels(shifts: torch.Tensor, shift: int) -> torch.Tensor:
    """Uniform bytes to integers in -shift..shift."""
    return shifts.long() * (2 * shift + 1) // 256 - shift


def _shifted(images: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    number, size = images.shape[:2]
    pixels = torch.arange(size, device=images.device)
    rows, columns = (offsets[:, :, None] + pixels).clamp_(0, size - 1).unbind(1)
    rows += size * torch.arange(number, device=images.device)[:, None]
    # One flat index of pixels is several times faster than indexing three dimensions.
    source = size * rows[:, :, None] + columns[:, None, :]
    return images.reshape(-1, 3).index_select(0, source.flatten()).view_as(images)
