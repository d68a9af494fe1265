"""The detector as one graph of fixed sizes, compared with Detectron2's own steps."""

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import nn

from densedet.errors import ConfigError
from densedet.export import describe, make_part, select_detections
from densedet.export.detector import EveryLevelPooler
from densedet.modeling.roi_heads import StridePooler

SIZE = (160, 192)


def detect(part, model, image, output=SIZE):
    boxes, scores, masks = part(image)
    metadata = describe(part, SIZE, model.state_dict())
    return select_detections(boxes, scores, masks, metadata, output)


@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("proposals", [60, 590])
def test_detections_are_those_of_the_model(make_detector, pictures, ensemble, proposals):
    """Also where the proposals are fewer than the regions of the file."""
    model = make_detector(ensemble, proposals)
    part = make_part(model, "detector", SIZE)
    (image,) = pictures(1, *SIZE)
    with torch.no_grad():
        expected = model([{"image": image, "height": 80, "width": 96}])[0]["instances"]
        kept = model.inference([{"image": image}], do_postprocess=False)[0]
    found = detect(part, model, image[None], (80, 96))
    assert len(expected) > 5 and expected.pred_classes.unique().numel() > 1
    assert torch.equal(found.pred_classes, expected.pred_classes)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found.scores, expected.scores, **close)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, **close)
    assert (found.pred_masks == expected.pred_masks).float().mean() > 0.9999
    assert kept.image_size == SIZE
    boxes, scores, masks = part(image[None])
    assert boxes.shape == (proposals, 4) and scores.shape == (proposals, 3)
    assert masks.shape == (proposals, 14, 14) and masks.min() >= 0 and masks.max() <= 1
    empty = (scores == 0).all(dim=1)
    assert bool(empty.any()) is (proposals == 590) and not empty.all()


def test_the_ensemble_changes_the_scores(make_detector, pictures):
    image = pictures(1, *SIZE)
    plain = make_part(make_detector(), "detector", SIZE)(image)[1]
    mixed = make_part(make_detector(ensemble=True), "detector", SIZE)(image)[1]
    assert (plain - mixed).abs().max() > 1e-3


def test_every_level_is_pooled_alike():
    torch.manual_seed(0)
    pooler = StridePooler(5, [4, 8, 16], base_size=14.0)
    levels = [torch.randn(1, 6, 64 // s, 96 // s) for s in (1, 2, 4)]
    corners = torch.rand(40, 2) * torch.tensor([300.0, 200.0])
    boxes = torch.cat([corners, corners + torch.rand(40, 2) * 120 + 1], dim=1)
    assert pooler.assign_levels([Boxes(boxes)]).unique().tolist() == [0, 1, 2]
    expected = pooler(levels, [Boxes(boxes)])
    torch.testing.assert_close(EveryLevelPooler(pooler)(levels, boxes), expected)


def test_other_poolers_are_refused(make_detector):
    model = make_detector()
    model.roi_heads.box_pooler = ROIPooler(5, [1 / 4, 1 / 8, 1 / 16], 0, "ROIAlignV2")
    with pytest.raises(ConfigError, match="pools with ROIPooler"):
        make_part(model, "detector", SIZE)


def test_a_model_without_masks(make_detector, pictures):
    model = make_detector()
    model.roi_heads.mask_on = False
    part = make_part(model, "detector", SIZE)
    assert len(part(pictures(1, *SIZE))) == 2 and list(part.outputs) == ["boxes", "scores"]
    boxes, scores = part(pictures(1, *SIZE))
    metadata = describe(part, SIZE, model.state_dict())
    found = select_detections(boxes, scores, None, metadata, SIZE)
    assert len(found) and not found.has("pred_masks")


def test_the_square_of_the_backbone_is_the_size(make_detector):
    model = make_detector()
    clip = next(m for m in model.modules() if getattr(m, "square_size", None) == 0)
    assert isinstance(clip, nn.Module)
    clip.square_size = 128
    with pytest.raises(ConfigError, match=r"built for 128x128 \(HxW\) pixels, not 160x192"):
        make_part(model, "detector", SIZE)
    assert make_part(model, "detector", (128, 128)).size == (128, 128)


def test_the_part_knows_its_size(make_detector):
    part = make_part(make_detector(), "detector", SIZE)
    with pytest.raises(ConfigError, match=r"built for 160x192 \(HxW\) pixels, not 96x96"):
        part.check_size((96, 96))
