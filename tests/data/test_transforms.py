"""Sizes by the formula, colours against an independent computation."""

import colorsys

import numpy as np
import pytest
from detectron2.data import transforms as T

from densedet.data import PhotometricDistortion, ResizeToFit
from densedet.errors import ConfigError


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((512, 683), (2048, 512), (512, 683)),
        ((683, 512), (2048, 512), (683, 512)),
        ((100, 150), (2048, 512), (512, 768)),  # enlarged
        ((100, 1000), (2048, 512), (205, 2048)),  # the long side limits
        ((333, 500), (2048, 640), (640, 961)),  # 500 * 640 / 333 = 960.96
        ((7, 4000), (200, 100), (1, 200)),  # 0.35 pixels are one
    ],
)
def test_an_image_is_resized_to_fit(size, limits, expected):
    transform = ResizeToFit(*limits).get_transform(np.zeros((*size, 3), dtype=np.uint8))
    assert (transform.new_h, transform.new_w) == expected


def test_one_factor_scales_both_limits():
    np.random.seed(0)
    resize, factors = ResizeToFit(2048, 512, (0.5, 2.0)), []
    image = np.zeros((100, 120, 3), dtype=np.uint8)
    for seed in range(200):
        np.random.seed(seed)
        factor = np.random.uniform(0.5, 2.0)
        np.random.seed(seed)
        transform = resize.get_transform(image)
        scale = min(int(2048 * factor) / 120, int(512 * factor) / 100)
        assert transform.new_h == int(100 * scale + 0.5)
        assert transform.new_w == int(120 * scale + 0.5)
        factors.append(transform.new_h / 512)
    assert 0.5 <= min(factors) < 0.55 and 1.95 < max(factors) <= 2.0


def test_labels_take_the_nearest():
    labels = np.random.default_rng(0).choice([0, 3, 255], (10, 14)).astype(np.uint8)
    image = np.zeros((10, 14, 3), dtype=np.uint8)
    aug_input = T.AugInput(image, sem_seg=labels)
    ResizeToFit(57, 33)(aug_input)
    assert aug_input.image.shape[:2] == aug_input.sem_seg.shape == (33, 46)
    assert set(np.unique(aug_input.sem_seg)) == {0, 3, 255}


@pytest.mark.parametrize(
    "arguments",
    [(100, 200), (100, 0), (100, 50, (0.0, 1.0)), (100, 50, (2.0, 1.0))],
)
def test_limits_that_cannot_be(arguments):
    with pytest.raises(ConfigError, match="ResizeToFit|image size"):
        ResizeToFit(*arguments)


def _expected(pixel, draws):
    """The distortion of one pixel (r, g, b) in real numbers, cut to bytes as the method does."""
    brightness, contrast_first, contrast, saturation, hue = draws

    def linear(values, factor, offset):
        return [int(min(max(v * factor + offset, 0), 255)) for v in values]

    if brightness:
        pixel = linear(pixel, 1, brightness)
    if contrast_first:
        pixel = linear(pixel, contrast, 0)
    if (saturation, hue) != (1.0, 0):
        h, s, v = colorsys.rgb_to_hsv(*(p / 255 for p in pixel))
        s = min(s * saturation, 1.0)
        pixel = [255 * p for p in colorsys.hsv_to_rgb((h + hue / 180) % 1, s, v)]
    return pixel if contrast_first else linear(pixel, contrast, 0)


def _draws(seed):
    """What the augmentation draws, in its order."""
    np.random.seed(seed)

    def coin():
        return bool(np.random.randint(2))

    brightness = np.random.uniform(-32, 32) if coin() else 0.0
    first = coin()
    contrast = np.random.uniform(0.5, 1.5) if coin() else 1.0
    saturation = np.random.uniform(0.5, 1.5) if coin() else 1.0
    hue = int(np.random.randint(-18, 18)) if coin() else 0
    return brightness, first, contrast, saturation, hue


def test_colours_are_those_of_the_formulas():
    image = np.random.default_rng(0).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    before, seen = image.copy(), []
    for seed in range(64):
        draws = _draws(seed)
        np.random.seed(seed)
        changed = PhotometricDistortion().get_transform(image).apply_image(image)
        assert changed.dtype == np.uint8 and np.array_equal(image, before)
        expected = [[_expected(pixel, draws) for pixel in row] for row in image.tolist()]
        # hue is kept in steps of two degrees and saturation in bytes: a few grey levels
        tolerance = 1 if draws[3:] == (1.0, 0) else 8
        assert np.abs(changed.astype(float) - np.array(expected)).max() <= tolerance
        seen.append([draws[0] != 0, draws[1], draws[2] != 1, draws[3] != 1, draws[4] != 0])
    assert np.all(np.abs(np.mean(seen, axis=0) - 0.5) < 0.2), "each in half of the cases"


def test_labels_have_no_colours():
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for seed in range(8):
        np.random.seed(seed)
        aug_input = T.AugInput(np.full((3, 4, 3), 90, dtype=np.uint8), sem_seg=labels.copy())
        PhotometricDistortion()(aug_input)
        assert np.array_equal(aug_input.sem_seg, labels)
