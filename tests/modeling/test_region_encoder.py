from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import roi_align

from densedet.clip import create_visual
from densedet.errors import ConfigError
from densedet.modeling.region_encoder import MODES, check_modes, embed_crops, embed_regions
from densedet.regions import box_masks, pool_boxes, pool_masks
from densedet.regions.crops import crop_and_resize, normalise, whole_image

SIZE, CROP = 96, 64


@pytest.fixture
def samples():
    """Images of 48x72 and 80x40 pixels with 3 and 2 regions."""
    generator = torch.Generator().manual_seed(0)
    boxes = [[[0, 0, 20, 30], [10.5, 5, 70, 47], [30, 8, 46, 40]], [[2, 3, 38, 60], [0, 50, 9, 80]]]
    found = []
    for (height, width), image_boxes in zip(((48, 72), (80, 40)), boxes, strict=True):
        regions = torch.tensor(image_boxes)
        cells = torch.rand(len(regions), SIZE // 16, SIZE // 16, generator=generator) > 0.6
        pixels = torch.randint(0, 256, (3, height, width), generator=generator)
        found.append(
            {
                "image": pixels.to(torch.uint8),
                "regions": regions,
                "crop_rectangles": regions.round().long(),
                "cells": cells,
            }
        )
    return found


def square(visual, sample):
    image = sample["image"]
    pixels = crop_and_resize([image], [whole_image(image)], SIZE, "corner")
    return normalise(pixels, visual.pixel_mean, visual.pixel_std)


def scaled(sample):
    return sample["regions"] * (SIZE / max(sample["image"].shape[1:]))


@torch.no_grad()
@pytest.mark.parametrize("batched", [True, False])
def test_every_mode_of_a_vit(make_visual, samples, batched):
    visual = make_visual("b16")
    batches = [samples] if batched else [[sample] for sample in samples]
    options = {"image_size": SIZE, "crop_size": CROP, "modes": MODES}
    results = [r for batch in batches for r in embed_regions(visual, batch, **options)]

    assert len(results) == 2
    for sample, result in zip(samples, results, strict=True):
        images, boxes = square(visual, sample), scaled(sample)
        dense = visual(images, pooled=False).dense
        crops = [
            crop_and_resize([sample["image"]], [rectangle[None]], CROP, "centre")
            for rectangle in sample["crop_rectangles"]
        ]
        normal = normalise(torch.cat(crops), visual.pixel_mean, visual.pixel_std)
        expected = {
            "boxes": pool_boxes(dense, [boxes], 16),
            "masks": pool_masks(dense, [sample["cells"]]),
            "boxes_tokens": pool_boxes(visual.dense_map(images, "tokens"), [boxes], 16),
            "boxes_values": pool_boxes(visual.dense_map(images, "values"), [boxes], 16),
            "boxes_attention": visual.attend_masks(images, [box_masks(boxes, (6, 6), 16)]),
            "crops": visual.embed_images(normal),
        }
        assert result.keys() == expected.keys() == set(MODES)
        for mode, embeddings in expected.items():
            torch.testing.assert_close(result[mode], embeddings, rtol=1e-4, atol=1e-5, msg=mode)
        units = [F.normalize(embeddings, dim=1) for embeddings in expected.values()]
        for first, one in enumerate(units):
            assert all((one - other).abs().max() > 1e-2 for other in units[first + 1 :])


@torch.no_grad()
def test_a_resnet_pools_boxes_by_its_attention(make_visual, samples):
    visual = make_visual("resnet")
    modes = ["boxes", "boxes_attention"]
    results = embed_regions(visual, samples, image_size=SIZE, crop_size=CROP, modes=modes)
    for sample, result in zip(samples, results, strict=True):
        images, boxes = square(visual, sample), scaled(sample)
        expected = visual.attend_boxes(images, [boxes])
        torch.testing.assert_close(result["boxes_attention"], expected, rtol=1e-4, atol=1e-5)
        expected = pool_boxes(visual(images, pooled=False).dense, [boxes], visual.stride)
        torch.testing.assert_close(result["boxes"], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_autocast_does_not_move_the_boxes_of_a_resnet(make_visual):
    """901 is 900 in bf16."""
    visual = make_visual("resnet")
    images = torch.rand(1, 3, 64, 1024, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[901.0, 5, 969, 60], [519, 5, 581, 60]])
    pool = mock.patch("densedet.clip.resnet.roi_align", wraps=roi_align)
    with pool as called, torch.autocast("cpu", torch.bfloat16):
        embedded = visual.attend_boxes(images, [boxes])
    (_, (corners,), *_), _ = called.call_args
    assert torch.equal(corners, boxes) and embedded.shape == (2, visual.embed_dim)


@torch.no_grad()
@pytest.mark.parametrize("empty", [1, 2])
def test_images_without_regions(make_visual, samples, empty):
    visual = make_visual("b16")
    for sample in samples[-empty:]:
        for key in ("regions", "crop_rectangles", "cells"):
            sample[key] = sample[key][:0]
    results = embed_regions(visual, samples, image_size=SIZE, crop_size=CROP, modes=MODES)
    shapes = [{mode: tuple(found.shape) for mode, found in result.items()} for result in results]
    counts = [len(sample["regions"]) for sample in samples]
    assert shapes == [dict.fromkeys(MODES, (count, visual.embed_dim)) for count in counts]


def test_only_what_is_asked_for_is_computed(make_visual, samples, monkeypatch):
    visual = make_visual("b16")
    calls = []
    for name in ("dense_map", "embed_images", "attend_masks"):
        original = getattr(visual, name)
        monkeypatch.setattr(
            visual, name, lambda *a, _n=name, _o=original: calls.append(_n) or _o(*a)
        )
    for sample in samples:
        del sample["cells"], sample["crop_rectangles"]
    embed_regions(visual, samples, image_size=SIZE, crop_size=CROP, modes=["boxes"])
    assert calls == ["dense_map"]


def test_many_crops_are_embedded_in_parts(make_visual, samples):
    visual = make_visual("b16")
    sample = samples[0]
    few = embed_regions(visual, [sample], image_size=SIZE, crop_size=CROP, modes=["crops"])
    sample["crop_rectangles"] = sample["crop_rectangles"].repeat(100, 1)
    many = embed_regions(visual, [sample], image_size=SIZE, crop_size=CROP, modes=["crops"])
    torch.testing.assert_close(
        many[0]["crops"], few[0]["crops"].repeat(100, 1), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_crop_padding(make_visual, samples):
    visual = make_visual("b16")
    options = {"image_size": SIZE, "crop_size": CROP, "modes": ["crops"]}
    (result, _) = embed_regions(visual, samples, **options, crop_padding="corner")
    images, rectangles = [samples[0]["image"]], [samples[0]["crop_rectangles"]]
    pixels = crop_and_resize(images, rectangles, CROP, "corner")
    expected = visual.embed_images(normalise(pixels, visual.pixel_mean, visual.pixel_std))
    torch.testing.assert_close(result["crops"], expected, rtol=1e-4, atol=1e-5)
    (centred, _) = embed_regions(visual, samples, **options)
    assert not torch.allclose(result["crops"], centred["crops"], atol=1e-2)


def test_an_empty_batch(make_visual):
    options = {"image_size": SIZE, "crop_size": CROP, "modes": MODES}
    assert embed_regions(make_visual("b16"), [], **options) == []


def test_gradients_reach_the_tower(make_visual, samples):
    visual = make_visual("b16")
    (result, _) = embed_regions(visual, samples, image_size=SIZE, crop_size=CROP, modes=["masks"])
    result["masks"].sum().backward()
    assert visual.tower.conv1.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("kind", "mode", "message"),
    [
        ("b16", "rois", "no region mode 'rois'; choose from boxes, masks"),
        ("resnet", "boxes_tokens", "'boxes_tokens' is not defined for a ResNetVisual"),
        ("resnet", "boxes_values", "'boxes_values' is not defined for a ResNetVisual"),
    ],
)
def test_modes_that_do_not_exist(make_visual, samples, kind, mode, message):
    with pytest.raises(ConfigError, match=message):
        embed_regions(make_visual(kind), samples, image_size=SIZE, crop_size=CROP, modes=[mode])


def test_an_eva_tower_has_no_attention_over_boxes():
    with torch.device("meta"):
        visual = create_visual("EVA02-B-16")
    check_modes(visual, [mode for mode in MODES if mode != "boxes_attention"])
    with pytest.raises(ConfigError, match="'boxes_attention' is not defined for .* EvaVisual"):
        check_modes(visual, ["boxes", "boxes_attention"])


def test_no_crops(make_visual):
    visual = make_visual("b16")
    found = embed_crops(visual, torch.zeros(0, 3, CROP, CROP, dtype=torch.uint8))
    assert found.shape == (0, visual.embed_dim) and found.dtype == torch.float32
