"""Averages over scales and mirror images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from densedet.errors import ConfigError
from densedet.modeling.pixel_scores import PixelScores, StoredScores
from densedet.modeling.sliding_window import slide
from densedet.modeling.test_time_augmentation import SemanticTTA, mean_probabilities


def picture(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def test_a_flip_equivariant_model_is_unchanged() -> None:
    image = picture(20, 31)
    tta = SemanticTTA(scales=(1.0,), short=20, long=31)
    record = {"image": image, "height": 20, "width": 31}
    found = tta(lambda x: StoredScores(x.float() / 50), record).full()
    assert torch.allclose(found, (image.float() / 50).softmax(dim=0))


def test_the_mirror_is_mirrored_back() -> None:
    """A model that looks at the place: the mean of its map and of the mirrored one."""
    ramp = torch.stack([torch.linspace(0, 2, 9).expand(4, 9), torch.zeros(4, 9)])
    found = mean_probabilities(lambda x: StoredScores(ramp), [picture(4, 9)], flip=True).full()
    expected = (ramp.softmax(dim=0) + ramp.flip(-1).softmax(dim=0)) / 2
    assert torch.allclose(found, expected)
    without = mean_probabilities(lambda x: StoredScores(ramp), [picture(4, 9)], flip=False).full()
    assert torch.allclose(without, ramp.softmax(dim=0))


def test_scales_keep_the_aspect_ratio_within_both_limits() -> None:
    sizes: list[tuple[int, ...]] = []

    def segment(image: Tensor) -> PixelScores:
        assert image.dtype == torch.uint8
        sizes.append(tuple(image.shape))
        return StoredScores(torch.zeros(2, 30, 42))

    tta = SemanticTTA(scales=(0.5, 1.0, 2.0), flip=True, short=40, long=50)
    tta(segment, {"image": picture(30, 42)})
    # r = 0.5: 25 / 42; r = 1: 50 / 42; r = 2: 100 / 42, for the long side limits them all
    assert sizes == [(3, 18, 25)] * 2 + [(3, 36, 50)] * 2 + [(3, 71, 100)] * 2
    sizes.clear()
    SemanticTTA(scales=(0.75,), flip=False, short=40, long=2048)(
        segment, {"image": picture(30, 42)}
    )
    assert sizes == [(3, 30, 42)]  # 40 * 0.75 = 30: as it is


def test_a_thin_picture_keeps_a_pixel() -> None:
    sizes: list[tuple[int, ...]] = []

    def segment(image: Tensor) -> PixelScores:
        sizes.append(tuple(image.shape))
        return StoredScores(torch.zeros(2, 1, 700))

    SemanticTTA(scales=(0.5, 1.0), flip=False, short=64, long=256)(
        segment, {"image": picture(1, 700)}
    )
    assert sizes == [(3, 1, 128), (3, 1, 256)]


def test_every_scale_has_the_same_weight() -> None:
    """The model tells which scale it sees; 1 of 2 scales votes for class 0, the other for 1."""

    def segment(image: Tensor) -> PixelScores:
        logits = torch.zeros(2, 10, 10)
        logits[0 if image.shape[-1] == 10 else 1] = 50.0
        return StoredScores(logits)

    found = SemanticTTA(scales=(1.0, 2.0), short=10, long=10)(segment, {"image": picture(10, 10)})
    assert torch.allclose(found.full(), torch.full((2, 10, 10), 0.5))


def test_float_pictures() -> None:
    image = torch.full((3, 8, 12), 7.5)

    def segment(image: Tensor) -> PixelScores:
        return StoredScores(F.interpolate(image[None], (8, 12))[0])

    found = SemanticTTA(scales=(0.5, 1.0), short=8, long=12)(segment, {"image": image})
    assert torch.allclose(found.full(), torch.full((3, 8, 12), 1 / 3))


def test_a_resized_picture_is_refused() -> None:
    record = {"image": picture(10, 10), "height": 20, "width": 20, "file_name": "a.png"}
    with pytest.raises(ConfigError, match="a.png of 20x20.*10x10.*augmentations"):
        SemanticTTA()(lambda x: StoredScores(x.float()), record)


@pytest.mark.parametrize("wrong", [{"scales": ()}, {"scales": (1.0, 0.0)}, {"short": 0}])
def test_nonsense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="positive"):
        SemanticTTA(**wrong)


def toy(x: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The toy network of the reference vectors: not equivariant to anything."""
    logits = torch.stack([x[:, 0], x[:, 1].flip(-1), x[:, 2].flip(-2), x.mean(dim=1)], dim=1)
    return logits, (x.shape[-2], x.shape[-1])


@pytest.mark.golden
def test_reference(golden_dir: Path) -> None:
    with np.load(golden_dir / "denseclip_slide.npz", allow_pickle=False) as file:
        arrays = {k: file[k] for k in file.files}
    case = json.loads(str(arrays["config"]))["tta"]

    def segment(image: Tensor) -> PixelScores:
        scores = slide(image, toy, tuple(case["crop"]), tuple(case["stride"]))
        return scores.resized(tuple(case["ori"]))

    images = [torch.from_numpy(arrays[f"tta/image{i}"][0]) for i in range(len(case["sizes"]))]
    found = mean_probabilities(segment, images, flip=True)
    expected = torch.from_numpy(arrays["tta/prob_mean"][0])
    assert (found.full() - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert torch.equal(found.argmax(dim=0), torch.from_numpy(arrays["tta/pred"][0]))
