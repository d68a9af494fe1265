"""Cutting rectangles out of images and resizing them into padded squares, as Pillow does.

A separable resize is two matrix products, ``rows @ window @ columns.T``. The weights are Pillow's
antialiased bicubic filter (Keys, 1981, with a = -0.5; the support grows with the reduction) over
the rectangle alone, and rows of zeros make the padding. So the teacher's crops and the student's
image of CLIPSelf (arXiv 2310.01403) are made where the model runs, from one decoded image.

The products are computed in float64: then they are the integers that Pillow computes, whatever the
order of the summands, and no setting of TF32 can change them. In float32 a sum close to a half is
rounded to the wrong side now and then, and the second pass may make two grey levels of that.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from densedet.regions.resampling import Axis, Weights, resize_weights

_CHUNK = 1 << 24  # elements of the largest temporary, where a single window allows it
# Pillow 13 resizes vertically first if that takes away much more: the rounding in between differs.
_PILLOW_CHOOSES_ORDER = int(PIL.__version__.partition(".")[0]) >= 13

Padding = Literal["centre", "corner", "stretch"]
Backend = Literal["auto", "device", "pil"]


def crop_and_resize(
    images: Sequence[Tensor],
    rectangles: Sequence[Tensor],
    size: int,
    padding: Padding = "centre",
    backend: Backend = "device",
) -> Tensor:
    """Cut rectangles out and resize each so that its longest side is ``size``.

    The other side becomes ``round(side * size / longest)``, at least 1; small rectangles are
    enlarged. The rest of the square is black. Pixels outside the rectangle have no influence.

    Args:
        images: uint8 ``[3, H, W]`` each, of any sizes, on one device.
        rectangles: for each image integers ``[K_i, 4]``, (left, upper, right, lower) in pixels,
            right and lower excluded; inside the image. On the CPU they cost no synchronisation.
        size: side of the squares in pixels.
        padding: "centre": the content is in the middle (left and top get the smaller half);
            "corner": it is at the upper left; "stretch": there is none, both sides become ``size``
            and the aspect ratio is lost.
        backend: "device": batched, on the device of the images, under autocast as well; the
            pixels of the installed Pillow (MPS, which has no float64: seldom one grey level off).
            "pil": by Pillow itself, on the CPU. "auto": "pil" for images on the CPU, where it is
            faster, else "device".

    Returns:
        uint8 ``[K, 3, size, size]``, K = sum of K_i, image by image, on the device of the images.

    Raises:
        ValueError: wrong types or shapes, a rectangle that is empty or leaves its image, or an
            unknown padding or backend.
    """
    if padding not in get_args(Padding) or backend not in get_args(Backend):
        raise ValueError(
            f"padding {padding!r}, backend {backend!r}: choose one of {get_args(Padding)} and of "
            f"{get_args(Backend)}"
        )
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    _check_images(images, rectangles)
    windows = [
        _window(i, image, rectangle, size, padding)
        for i, (image, rows) in enumerate(zip(images, rectangles, strict=True))
        for rectangle in rows.tolist()
    ]
    if backend == "auto":
        backend = "pil" if images[0].device.type == "cpu" else "device"
    resize = _resize_with_pillow if backend == "pil" else _resize_in_groups
    return resize(images, windows, size)


def crop_rectangles(boxes: Tensor, image_size: tuple[int, int], enlarge: float = 1.0) -> Tensor:
    """The pixels that Pillow cuts out for boxes: rounded half to even, inside the image.

    Args:
        boxes: ``[K, 4]``, (x0, y0, x1, y1) in pixels; computed with in float64.
        image_size: (height, width) in pixels.
        enlarge: factor on both sides, about the centre of the box, before it is clipped.

    Returns:
        int64 ``[K, 4]``, (left, upper, right, lower), at least one pixel wide and high.
    """
    boxes = boxes.double()
    if enlarge != 1:
        sides = boxes[:, 2:] - boxes[:, :2]
        centres = boxes[:, :2] + 0.5 * sides
        boxes = torch.cat([centres - 0.5 * enlarge * sides, centres + 0.5 * enlarge * sides], dim=1)
    height, width = image_size
    limit = torch.tensor([width, height], device=boxes.device)
    upper_left, lower_right = (corner.round().long() for corner in boxes.split(2, dim=1))
    upper_left = torch.minimum(upper_left.clamp(min=0), limit - 1)
    lower_right = torch.maximum(torch.minimum(lower_right, limit), upper_left + 1)
    return torch.cat([upper_left, lower_right], dim=1)


def whole_image(image: Tensor) -> Tensor:
    """The rectangle of a whole ``[3, H, W]`` image: int64 ``[1, 4]``, on the CPU."""
    height, width = image.shape[-2:]
    return torch.tensor([[0, 0, width, height]])


def scale_boxes(boxes: Tensor, image_size: tuple[int, int], size: int) -> Tensor:
    """Boxes in pixels of an image -> in pixels of its square with "corner" padding.

    Args:
        boxes: ``[K, 4]`` in pixels of the image.
        image_size: (height, width) of the image.
        size: side of the square.
    """
    return boxes * (size / max(image_size))


def normalise(
    pixels: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor
) -> Tensor:
    """``(pixels / 255 - mean) / std`` in float32.

    Args:
        pixels: uint8 ``[..., 3, h, w]``.
        mean: of each channel, for values in 0..1.
        std: likewise.
    """
    values = pixels.to(torch.float32) / 255
    centre, scale = (
        torch.as_tensor(v, dtype=torch.float32, device=pixels.device)[:, None, None]
        for v in (mean, std)
    )
    return values.sub_(centre).div_(scale)


class _Window(NamedTuple):
    image: int
    left: int
    upper: int
    columns: Axis
    rows: Axis

    def vertical_first(self) -> bool:
        """Whether Pillow makes the window lower before it changes the width."""
        less_wide, less_high = (axis.side - axis.length for axis in (self.columns, self.rows))
        return _PILLOW_CHOOSES_ORDER and less_high > max(0, 2 * less_wide)

    def transposed(self) -> "_Window":
        return _Window(self.image, self.upper, self.left, self.rows, self.columns)


def _check_images(images: Sequence[Tensor], rectangles: Sequence[Tensor]) -> None:
    if len(images) != len(rectangles) or not len(images):
        raise ValueError(f"{len(rectangles)} lists of rectangles for {len(images)} images")
    for i, (image, rows) in enumerate(zip(images, rectangles, strict=True)):
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(
                f"image {i} must be uint8 [3, H, W], got {image.dtype} {tuple(image.shape)}"
            )
        if image.device != images[0].device:
            raise ValueError(f"image {i} is on {image.device}, image 0 on {images[0].device}")
        if rows.is_floating_point() or rows.ndim != 2 or rows.shape[1] != 4:
            raise ValueError(
                f"rectangles of image {i} must be integers [K, 4], got {rows.dtype} "
                f"{tuple(rows.shape)}"
            )


def _window(index: int, image: Tensor, rectangle: list[int], size: int, padding: str) -> _Window:
    left, upper, right, lower = rectangle
    if not (0 <= left < right <= image.shape[2] and 0 <= upper < lower <= image.shape[1]):
        raise ValueError(
            f"rectangle {rectangle} (left, upper, right, lower) of image {index} is empty or "
            f"leaves the image of {image.shape[2]}x{image.shape[1]} pixels (width x height)"
        )
    sides = (right - left, lower - upper)
    lengths = [size, size]
    if padding != "stretch":
        lengths = [max(1, round(side * size / max(sides))) for side in sides]
    columns, rows = (
        Axis(side, length, (size - length) // 2 if padding == "centre" else 0)
        for side, length in zip(sides, lengths, strict=True)
    )
    return _Window(index, left, upper, columns, rows)


def _resize_with_pillow(images: Sequence[Tensor], windows: list[_Window], size: int) -> Tensor:
    pictures = [Image.fromarray(image.permute(1, 2, 0).cpu().numpy()) for image in images]
    squares = np.zeros((len(windows), size, size, 3), dtype=np.uint8)
    for square, (image, left, upper, columns, rows) in zip(squares, windows, strict=True):
        crop = pictures[image].crop((left, upper, left + columns.side, upper + rows.side))
        crop = crop.resize((columns.length, rows.length), Image.Resampling.BICUBIC)
        bottom, right = rows.offset + rows.length, columns.offset + columns.length
        square[rows.offset : bottom, columns.offset : right] = np.asarray(crop)
    return torch.from_numpy(squares).permute(0, 3, 1, 2).contiguous().to(images[0].device)


def _resize_in_groups(images: Sequence[Tensor], windows: list[_Window], size: int) -> Tensor:
    device = images[0].device
    turned = [image.transpose(1, 2) for image in images]
    squares = torch.zeros(len(windows), 3, size, size, dtype=torch.uint8, device=device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        for vertical_first, members in _groups(windows, size):
            group = [windows[i] for i in members]
            if vertical_first:
                group = [window.transposed() for window in group]
                resized = _resize_group(turned, group, size).transpose(2, 3)
            else:
                resized = _resize_group(images, group, size)
            squares[torch.tensor(members, device=device)] = resized
    return squares


def _groups(windows: list[_Window], size: int) -> Iterator[tuple[bool, list[int]]]:
    """Numbers of windows whose sides differ by a factor of 1.5 at most, few enough for a product.

    The first value says whether the columns of these come first.
    """
    classes: dict[tuple[bool, int, int], list[int]] = {}
    for i, window in enumerate(windows):
        wide, high = (round(2 * math.log2(axis.side)) for axis in (window.columns, window.rows))
        classes.setdefault((window.vertical_first(), wide, high), []).append(i)
    for (vertical_first, _, _), members in classes.items():
        width = max(max(windows[i].columns.side for i in members), size)
        height = max(max(windows[i].rows.side for i in members), size)
        step = max(1, _CHUNK // (3 * width * height))
        for start in range(0, len(members), step):
            yield vertical_first, members[start : start + step]


def _resize_group(images: Sequence[Tensor], windows: list[_Window], size: int) -> Tensor:
    device = images[0].device
    columns = resize_weights([window.columns for window in windows], size, device)
    rows = resize_weights([window.rows for window in windows], size, device)
    narrow = _resize_columns(images, windows, columns)
    squares = torch.zeros(len(windows), 3, size, size, dtype=torch.uint8, device=device)
    content = squares[..., columns.begin : columns.end]
    for tile in rows.tiles:
        values = rows.piece(tile) @ narrow[:, tile.start : tile.stop].flatten(2)
        values.add_(0.5).clamp_(0, 255)  # the conversion to uint8 cuts off the fraction
        values = values.unflatten(2, (3, -1)).transpose(1, 2)
        content[:, :, tile.first : tile.last].copy_(values)
    return squares


def _resize_columns(images: Sequence[Tensor], windows: list[_Window], columns: Weights) -> Tensor:
    """The horizontal pass, rounded: ``[N, height, 3, end - begin]``."""
    count, height = len(windows), max(window.rows.side for window in windows)
    width = columns.matrices.shape[2]
    narrow = columns.matrices.new_empty(count, height, 3, columns.end - columns.begin)
    step = max(1, _CHUNK // (count * 3 * width))
    for top in range(0, height, step):
        pixels = columns.matrices.new_zeros(count, min(step, height - top), 3, width)
        for target, window in zip(pixels, windows, strict=True):
            _copy_rows(images[window.image], window, top, target)
        pixels = pixels.flatten(1, 2)
        for tile in columns.tiles:
            values = pixels[:, :, tile.start : tile.stop] @ columns.piece(tile).transpose(1, 2)
            values = values.add_(0.5).floor_().clamp_(0, 255).unflatten(1, (-1, 3))
            begin, end = tile.first - columns.begin, tile.last - columns.begin
            narrow[:, top : top + step, :, begin:end] = values
    return narrow


def _copy_rows(image: Tensor, window: _Window, top: int, target: Tensor) -> None:
    """Copy the rows of a window from ``top`` on into ``target``, ``[rows, 3, width]``."""
    first, last = window.upper + top, window.upper + min(top + len(target), window.rows.side)
    source = image[:, first:last, window.left : window.left + window.columns.side]
    target[: source.shape[1], :, : source.shape[2]] = source.transpose(0, 1)
