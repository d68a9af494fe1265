"""Drawing detections, segments and similarities quickly, at the resolution of the image.

`densedet.visualization` has functions of the same names that draw with Detectron2's visualizer.
"""

import colorsys
import functools
import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from densedet.fonts import runs

Pixels = NDArray[np.uint8]

_LEAST_FONT, _FONTS_OF_A_SIDE = 11, 42  # pixels; so many lines of text make the mean side
_DARK = 0.2  # of the image that is left behind a text
_DETECTION_ALPHA, _SEGMENT_ALPHA, _HEAT_ALPHA = 0.25, 0.45, 0.6


def label_colour(label: str) -> tuple[float, float, float]:
    """RGB in 0..1 that depends on the label alone, so that images can be compared."""
    hue = int.from_bytes(hashlib.sha256(label.encode()).digest()[:2], "big") / 65536
    return colorsys.hsv_to_rgb(hue, 0.85, 1.0)


def draw_detections(image: Pixels, instances: Any, labels: tuple[str, ...]) -> Pixels:
    """Draw boxes, masks and "label 87%" over an image, the largest box first.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: detections on the CPU, `detectron2.structures.Instances`.
        labels: of the classes.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    drawn = np.array(image, order="C")
    names = [labels[i] for i in instances.pred_classes.tolist()]
    texts = captions(names, instances.scores.tolist())
    boxes = instances.pred_boxes.tensor.numpy()
    masks = instances.pred_masks.numpy() if instances.has("pred_masks") else None
    sides = boxes[:, 2:] - boxes[:, :2]
    order = np.argsort(-sides.prod(axis=1), kind="stable")
    for row in order:
        colour = _bytes(names[row])
        if masks is not None:
            _blend(drawn, masks[row], colour, _DETECTION_ALPHA)
        x0, y0, x1, y1 = (round(float(side)) for side in boxes[row])
        cv2.rectangle(drawn, (x0, y0), (max(x1 - 1, x0), max(y1 - 1, y0)), colour, _width(drawn))
    corners = [(float(boxes[row, 0]), float(boxes[row, 1])) for row in order]
    return _write(drawn, [texts[row] for row in order], corners, [names[row] for row in order])


def draw_segments(
    image: Pixels,
    masks: NDArray[np.bool_],
    labels: Sequence[str],
    scores: Sequence[float | None],
) -> Pixels:
    """Draw masks and "label" or "label 87%" over an image, each text where its mask is widest.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (R, H, W), of the segments.
        labels: R, of the segments.
        scores: R, None without one.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    drawn = np.array(image, order="C")
    texts = captions(labels, scores)
    order = [row for row in range(len(masks)) if masks[row].any()]
    order.sort(key=lambda row: -int(masks[row].sum()))
    for row in order:
        _blend(drawn, masks[row], _bytes(labels[row]), _SEGMENT_ALPHA)
    places = [_middle(masks[row]) for row in order]
    texts, names = [texts[row] for row in order], [labels[row] for row in order]
    return _write(drawn, texts, places, names, centred=True)


def draw_similarity(image: Pixels, cosines: NDArray[np.float32], phrase: str) -> Pixels:
    """Draw a heat map and "phrase: lowest to highest cosine" over an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        cosines: (H, W); its lowest value is drawn blue, its highest red.
        phrase: what was compared with.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    low, high = float(cosines.min()), float(cosines.max())
    shares = (255 * ((cosines - low) / max(high - low, 1e-6))).round().astype(np.uint8)
    heat = (255 * matplotlib.colormaps["turbo"](np.arange(256))[:, :3]).round().astype(np.uint8)
    drawn = cv2.addWeighted(image, 1 - _HEAT_ALPHA, heat[shares], _HEAT_ALPHA, 0)
    text = f"{phrase}: {low:.2f} to {high:.2f}"
    return _write(np.asarray(drawn, dtype=np.uint8), [text], [(4.0, 4.0)], [None])


def captions(labels: Sequence[str], scores: Sequence[float | None]) -> list[str]:
    """What is written beside what is found: "label", or "label 87%" where there is a score."""
    pairs = zip(labels, scores, strict=True)
    return [label if score is None else f"{label} {score:.0%}" for label, score in pairs]


def _bytes(label: str | None) -> tuple[int, int, int]:
    """The colour of a label, 0..255; white for none."""
    red, green, blue = (1.0, 1.0, 1.0) if label is None else label_colour(label)
    return round(255 * red), round(255 * green), round(255 * blue)


def _width(image: Pixels) -> int:
    """Of a line, in pixels."""
    return max(1, round(min(image.shape[:2]) / 240))


def _blend(drawn: Pixels, mask: NDArray[np.bool_], colour: Sequence[int], alpha: float) -> None:
    """Colour a mask (H, W) in an image (H, W, 3), in place, and draw its border."""
    bits = np.ascontiguousarray(mask).view(np.uint8)
    x, y, width, height = cv2.boundingRect(bits)
    if not width:
        return
    part, inside = drawn[y : y + height, x : x + width], bits[y : y + height, x : x + width]
    tint = np.full_like(part, colour)
    cv2.copyTo(cv2.addWeighted(part, 1 - alpha, tint, alpha, 0), inside, part)
    # RETR_CCOMP: holes stay open, and have a border of their own
    borders, _ = cv2.findContours(inside, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE, offset=(x, y))
    cv2.drawContours(drawn, borders, -1, colour, 1)


def _middle(mask: NDArray[np.bool_]) -> tuple[float, float]:
    """x and y of the pixel of a mask (H, W) that is farthest from its border."""
    bits = np.ascontiguousarray(mask).view(np.uint8)
    x, y, width, height = cv2.boundingRect(bits)
    part = np.pad(bits[y : y + height, x : x + width], 1)
    away = cv2.distanceTransform(part, cv2.DIST_L2, 3)
    rows, columns = np.nonzero(away == away.max())
    row, column = int(rows[len(rows) // 2]), int(columns[len(rows) // 2])
    return x + column - 0.5, y + row - 0.5


def _write(
    drawn: Pixels,
    texts: Sequence[str],
    places: Iterable[tuple[float, float]],
    names: Sequence[str | None],
    centred: bool = False,
) -> Pixels:
    """Write texts on dark ground, in light tones of the colours of the names, inside the image.

    Args:
        drawn: (H, W, 3) uint8 RGB.
        texts: N.
        places: x and y of each, of its upper left corner or, ``centred``, of its middle.
        names: labels, or None for white.
    """
    height, width = drawn.shape[:2]
    size = max(_LEAST_FONT, round((height * width) ** 0.5 / _FONTS_OF_A_SIDE))
    for text, (x, y), name in zip(texts, places, names, strict=True):
        ink = _ink(text, size)
        if centred:
            x, y = x - ink.shape[1] / 2, y - ink.shape[0] / 2
        left = min(max(round(x), 0), max(width - ink.shape[1], 0))
        top = min(max(round(y), 0), max(height - ink.shape[0], 0))
        part = drawn[top : top + ink.shape[0], left : left + ink.shape[1]]
        share = ink[: part.shape[0], : part.shape[1], None] / np.float32(255)
        light = 0.3 * 255 + 0.7 * np.array(_bytes(name), dtype=np.float32)
        part[:] = (_DARK * part * (1 - share) + light * share).round().astype(np.uint8)
    return drawn


@functools.lru_cache(maxsize=1024)
def _ink(text: str, size: int) -> Pixels:
    """A text as (h, w) uint8, 255 where the ink is full; each character in a font that has it."""
    parts = [(part, _font(path, size)) for part, path in runs(" ".join(text.split()))]
    ascent = max((font.getmetrics()[0] for _, font in parts), default=size)
    descent = max((font.getmetrics()[1] for _, font in parts), default=0)
    lengths = [font.getlength(part) for part, font in parts]
    ground = Image.new("L", (round(sum(lengths)) + 4, ascent + descent + 1))
    canvas, x = ImageDraw.Draw(ground), 2.0
    for (part, font), length in zip(parts, lengths, strict=True):
        canvas.text((x, ascent), part, fill=255, font=font, anchor="ls")
        x += length
    ink = np.asarray(ground)
    ink.setflags(write=False)
    return ink


@functools.lru_cache(maxsize=64)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)
