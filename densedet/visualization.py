"""Drawing detections, segments and similarities with Detectron2's visualizer.

Colours depend on the label alone, which is steadier than Detectron2's VideoVisualizer: that gives a
thing another colour when it loses track of it.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from detectron2.structures import Instances
from detectron2.utils.visualizer import VisImage, Visualizer
from numpy.typing import NDArray
from PIL import Image

from densedet.drawing import captions, label_colour
from densedet.fonts import families

_LONGEST_SIDE = 4_096  # pixels, of what was enlarged
_MOST_PIXELS = 4_096**2  # matplotlib takes some 140 bytes for each


class _Visualizer(Visualizer):
    """Detectron2's, faster, which also draws letters that its font does not have.

    `Axes.add_patch` measures every patch, for limits of the axes that an image does not have;
    `add_artist` draws the same pixels without.
    """

    def __init__(self, image: NDArray[np.uint8], scale: float = 1.0) -> None:
        super().__init__(image, scale=scale)
        self.output.ax.add_patch = self.output.ax.add_artist

    def draw_text(self, text: str, position: Any, **options: Any) -> Any:
        """As Detectron2 does, in fonts that have the characters of the text."""
        output = super().draw_text(text, position, **options)
        output.ax.texts[-1].set_fontfamily(families(text))
        return output


def draw_detections(
    image: NDArray[np.uint8],
    instances: Instances,
    labels: tuple[str, ...],
    smallest_side: int = 640,
) -> NDArray[np.uint8]:
    """Draw boxes, masks and "label 87%" over an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: detections on the CPU.
        labels: of the classes.
        smallest_side: smaller images are enlarged, so that the text can be read, long thin ones
            up to 4,096 pixels. Above 16.8 million pixels an image is drawn smaller.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    names = [labels[i] for i in instances.pred_classes.tolist()]
    masks: Any = instances.pred_masks.numpy() if instances.has("pred_masks") else None
    step = _step(image)
    image, masks = _widened(*_reduced(image, masks, step))
    drawn = _Visualizer(image, scale=_factor(image, smallest_side)).overlay_instances(
        boxes=instances.pred_boxes.tensor / step,
        masks=masks,
        labels=_texts(names, instances.scores.tolist()),
        assigned_colors=[label_colour(name) for name in names],
        alpha=0.2,
    )
    return _rendered(drawn)


def draw_segments(
    image: NDArray[np.uint8],
    masks: NDArray[np.bool_],
    labels: Sequence[str],
    scores: Sequence[float | None],
    smallest_side: int = 640,
) -> NDArray[np.uint8]:
    """Draw masks and "label" or "label 87%" over an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        masks: (R, H, W), of the segments.
        labels: R, of the segments.
        scores: R, None without one.
        smallest_side: as of `draw_detections`.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    image, masks = _widened(*_reduced(image, masks, _step(image)))
    large, factor = _enlarged(image, smallest_side)
    drawn = _Visualizer(large)
    texts = _texts(labels, scores)
    for row in np.argsort([-int(mask.sum()) for mask in masks], kind="stable"):
        drawn.draw_binary_mask(
            masks[row].repeat(factor, axis=0).repeat(factor, axis=1),
            color=label_colour(labels[row]),
            text=texts[row],
            alpha=0.45,
            area_threshold=0,
        )
    return _rendered(drawn.output)


def draw_similarity(
    image: NDArray[np.uint8],
    cosines: NDArray[np.float32],
    phrase: str,
    smallest_side: int = 640,
) -> NDArray[np.uint8]:
    """Draw a heat map and "phrase: lowest to highest cosine" over an image.

    Args:
        image: (H, W, 3) uint8 RGB.
        cosines: (H, W); its lowest value is drawn blue, its highest red.
        phrase: what was compared with.
        smallest_side: as of `draw_detections`.

    Returns:
        (H', W', 3) uint8 RGB.
    """
    step = _step(image)
    image, cosines = _reduced(image, None, step)[0], cosines[::step, ::step]
    large, factor = _enlarged(image, smallest_side)
    low, high = float(cosines.min()), float(cosines.max())
    heat = matplotlib.colormaps["turbo"]((cosines - low) / max(high - low, 1e-6))[..., :3]
    heat = (255 * heat).repeat(factor, axis=0).repeat(factor, axis=1)
    drawn = _Visualizer((0.4 * large + 0.6 * heat).round().astype(np.uint8))
    text = f"{_literal(phrase)}: {low:.2f} to {high:.2f}"
    drawn.draw_text(text, (8, 8), color="white", horizontal_alignment="left")
    return _rendered(drawn.output)


def _step(image: NDArray[np.uint8]) -> int:
    """How many times as small an image is to be drawn, at least 1."""
    return math.ceil(math.sqrt(image.shape[0] * image.shape[1] / _MOST_PIXELS))


def _reduced(image: NDArray[np.uint8], masks: Any, step: int) -> tuple[NDArray[np.uint8], Any]:
    """An image and its masks (R, H, W), or None, ``step`` times as small."""
    if step == 1:
        return image, masks
    smaller = np.asarray(Image.fromarray(image).reduce(step))
    return smaller, None if masks is None else masks[:, ::step, ::step]


def _widened(image: NDArray[np.uint8], masks: Any) -> tuple[NDArray[np.uint8], Any]:
    """An image two pixels wide, and its masks (R, H, 2), with a third column.

    Detectron2 takes an array with two columns for a polygon.
    """
    if image.shape[1] != 2:
        return image, masks
    wider = None if masks is None else np.pad(masks, ((0, 0), (0, 0), (0, 1)))
    return np.pad(image, ((0, 0), (0, 1), (0, 0)), "edge"), wider


def _factor(image: NDArray[np.uint8], smallest_side: int) -> float:
    """How many times as large an image is to be, at least 1; also rounded up within the limit."""
    sides = image.shape[:2]
    return max(1.0, min(smallest_side / min(sides), _LONGEST_SIDE // max(sides)))


def _enlarged(image: NDArray[np.uint8], smallest_side: int) -> tuple[NDArray[np.uint8], int]:
    """An image at least so large, and how many times as large it is.

    Enlarged before, not by the visualizer: that puts the text beside what is small in pixels.
    """
    factor = math.ceil(_factor(image, smallest_side))
    size = (factor * image.shape[1], factor * image.shape[0])
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)), factor


def _rendered(drawn: VisImage) -> NDArray[np.uint8]:
    """The pixels (H, W, 3); of glyphs that no font has, `families` told already.

    The figure is given back at once. Its parts refer to each other, and Python would look for such
    circles among old objects only when their number had grown by a quarter: beside torch, after
    gigabytes of figures.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        pixels = np.asarray(drawn.get_image())
    _release(drawn)
    return pixels


def _literal(label: str) -> str:
    """For matplotlib, which takes what stands between dollar signs for a formula."""
    return label.replace("$", r"\$")


def _texts(labels: Sequence[str], scores: Sequence[float | None]) -> list[str]:
    return [_literal(text) for text in captions(labels, scores)]


def _release(drawn: VisImage) -> None:
    """Empty the parts of a figure, so that none keeps another, or pixels, alive."""
    canvas, parts = drawn.canvas, drawn.fig.findobj()
    for part in (*parts, canvas.renderer, canvas, drawn):
        vars(part).clear()
