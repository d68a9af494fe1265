"""Dense, region and text embeddings of a predictor, against computations of their own."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes
from torchvision.ops import roi_align

from densedet import model_zoo
from densedet.clip import create_text_encoder, create_visual
from densedet.data.shapes_world_scenes import make_scene
from densedet.data.transforms import resize_longest_side
from densedet.errors import ConfigError, ImageError, VocabularyError
from densedet.predictor import Predictor
from densedet.vocabulary import Vocabulary

STRIDE = 8


@pytest.fixture(scope="module")
def visual():
    return create_visual("densedet-tiny", "shipped")


def expected_map(visual, image, divisor=STRIDE):
    """[1, D, h, w], the picture padded with zeros after normalisation to multiples of a size."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (visual.pixel_mean, visual.pixel_std))
    pixels = (torch.tensor(image.copy()).movedim(-1, 0) / 255 - mean) / std
    height, width = pixels.shape[1:]
    padded = F.pad(pixels, (0, -width % divisor, 0, -height % divisor))
    with torch.no_grad():
        return visual.dense_map(padded[None])


@pytest.mark.parametrize(("name", "divisor"), [("predictor", 16), ("zero_shot", 8)])
@pytest.mark.parametrize("shape", [(160, 160), (150, 131)])
def test_dense_features_are_those_of_the_tower(request, name, divisor, shape, visual, image):
    """Of the padded picture as the heads see it, without the cells that are padding alone."""
    picture = image[: shape[0], : shape[1]]
    found = request.getfixturevalue(name).dense_features(picture)
    rows, columns = (-(-side // STRIDE) for side in shape)
    expected = expected_map(visual, picture, divisor)[0, :, :rows, :columns]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert found.dtype == torch.float32 and not found.is_inference()
    assert torch.allclose(found.norm(dim=0), torch.ones(found.shape[1:]))


def test_a_dense_map_of_the_backbone_is_taken(save_untrained, visual, image):
    config = model_zoo.get_config("projects/clipself/configs/quickstart_detector.py")
    config.model.backbone.bottom_up.bottom_up.visual.pretrained = "shipped"
    # padded to a square: the padding is not part of the map
    config.model.backbone.bottom_up.bottom_up.square_size = 192
    predictor = Predictor(config, save_untrained(config), device="cpu")
    found = predictor.dense_features(image[:150])
    square = np.zeros((192, 192, 3), np.uint8)
    square[:] = np.round(255 * np.array(visual.pixel_mean)).astype(np.uint8)
    square[:150, :160] = image[:150]
    assert found.shape == (visual.embed_dim, 19, 20)
    close = (found * expected_map(visual, square)[0, :, :19, :20]).sum(dim=0)
    assert close.min() > 0.999  # the mean colour is rounded


def test_box_features_are_roi_align(zero_shot, visual, image):
    boxes = torch.tensor([[10.0, 20.0, 70.0, 90.0], [0, 0, 160, 160], [100.5, 3, 111, 15]])
    found = zero_shot.region_features(boxes=boxes, image=image)
    aligned = roi_align(expected_map(visual, image), [boxes], 1, 1 / STRIDE, -1, True)[:, :, 0, 0]
    torch.testing.assert_close(found, F.normalize(aligned, dim=1), atol=1e-5, rtol=1e-4)
    zero_shot.set_image(image)
    assert zero_shot.region_features(boxes=boxes.tolist()).equal(found)
    assert zero_shot.region_features(boxes=Boxes(boxes)).equal(found)
    for none in (torch.zeros(0, 4), []):
        assert zero_shot.region_features(boxes=none).shape == (0, visual.embed_dim)


def test_what_of_a_box_is_outside_the_picture_does_not_count(zero_shot, image):
    far = float("inf")
    over = [[-50.0, 100, 40, 400], [-far, -far, far, far]]
    inside = [[0.0, 100, 40, 160], [0, 0, 160, 160]]
    found = zero_shot.region_features(boxes=over, image=image)
    assert found.equal(zero_shot.region_features(boxes=inside, image=image))


def test_mask_features_are_means_over_the_covered_cells(zero_shot, visual, image):
    dense = expected_map(visual, image)[0]
    masks = torch.zeros(3, 160, 160, dtype=torch.bool)
    masks[0] = True
    masks[1, 16:24, 40:48] = True  # one cell
    masks[2, 16:24, 44:50] = True  # half of it and a quarter of its neighbour
    found = zero_shot.region_features(masks=masks, image=image)
    one, half = dense[:, 2, 5], 2 * dense[:, 2, 5] + dense[:, 2, 6]
    expected = torch.stack([dense.mean(dim=(1, 2)), one, half])
    torch.testing.assert_close(found, F.normalize(expected, dim=1), atol=1e-5, rtol=1e-4)
    assert zero_shot.region_features(masks=masks[:0], image=image).shape == (0, len(dense))


def test_regions_are_in_pixels_of_the_picture_not_of_the_resized_one(visual, image):
    config = model_zoo.get_config("projects/panoptic_fpn/configs/quickstart_zero_shot.py")
    config.dataloader.test.mapper.augmentations = resize_longest_side(96)
    predictor = Predictor(config, device="cpu")
    picture = image[:, :120]
    predictor.set_image(picture)
    dense = predictor.dense_features()
    assert dense.shape[1:] == (12, 9)  # 96 x 72 pixels
    box = torch.tensor([[20.0, 40.0, 60.0, 120.0]])
    aligned = roi_align(dense[None], [0.6 * box], 1, 1 / STRIDE, -1, True)[:, :, 0, 0]
    found = predictor.region_features(boxes=box)
    torch.testing.assert_close(found, F.normalize(aligned, dim=1), atol=1e-5, rtol=1e-4)
    mask = torch.zeros(1, 160, 120, dtype=torch.bool)
    mask[0, 40:80, 40:80] = True  # cells 3..5 of 13 1/3 pixels
    expected = F.normalize(dense[:, 3:6, 3:6].mean(dim=(1, 2)), dim=0)
    assert torch.allclose(predictor.region_features(masks=mask)[0], expected, atol=1e-5)
    assert predictor.similarity("red star").shape == (160, 120)


def test_words_are_embedded_name_by_name(zero_shot):
    words = Vocabulary.parse("red star,star that is red;blue ring")
    found = zero_shot.embed_text(words)
    text = create_text_encoder("densedet-tiny", "shipped")
    assert torch.allclose(found, text.embed_names(words.synonyms, "single"), atol=1e-6)
    assert len(found) == len(words.groups) == 3
    assert torch.allclose(zero_shot.embed_text("red star"), found[:1], atol=1e-6)


@pytest.mark.parametrize("shape", [(160, 160), (150, 131)])
def test_similarity_is_the_interpolated_cosine(zero_shot, visual, image, shape):
    picture = image[: shape[0], : shape[1]]
    vector = zero_shot.embed_text([["red star, blue ring"]])[0]
    cosines = torch.einsum("bdhw,d->bhw", expected_map(visual, picture), vector)[:, None]
    large = F.interpolate(cosines, scale_factor=STRIDE, mode="bilinear")[0, 0]
    found = zero_shot.similarity("red star, blue ring", picture)  # one phrase, with a comma
    torch.testing.assert_close(found, large[: shape[0], : shape[1]], atol=1e-5, rtol=1e-4)


def test_a_phrase_is_where_its_thing_is(zero_shot):
    inside, outside = [], []
    for index in range(4):
        scene = make_scene(0, "val", index)
        for thing in scene.things:
            found = zero_shot.similarity(thing.label, scene.image)
            same = np.any([t.mask for t in scene.things if t.label == thing.label], axis=0)
            inside.append(float(found[torch.tensor(same)].mean()))
            outside.append(float(found[torch.tensor(~same)].mean()))
    better = sum(a > b for a, b in zip(inside, outside, strict=True))
    assert better >= 0.8 * len(inside) and len(inside) > 10


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({}, "either boxes or masks"),
        ({"boxes": [[0, 0, 1, 1]], "masks": torch.ones(1, 160, 160)}, "either boxes or masks"),
        ({"boxes": [0, 0, 1, 1]}, r"must be \[R, 4\]"),
        ({"boxes": [[0, 0, 9, 9], [5, 5, 5, 9]]}, "box 1 is empty"),
        ({"boxes": [[160, 0, 170, 9]]}, "box 0 is empty"),
        ({"boxes": [[0, 0, float("nan"), 9]]}, "box 0 is empty"),
        ({"masks": torch.ones(1, 20, 20)}, r"must be \[R, 160, 160\]"),
        ({"masks": torch.zeros(1, 160, 160)}, "mask 0 is empty"),
    ],
)
def test_wrong_regions_are_refused(zero_shot, image, regions, message):
    with pytest.raises(ValueError, match=message):
        zero_shot.region_features(**regions, image=image)


def test_what_a_model_lacks_is_said(guided, zero_shot, config, weights, save_untrained, image):
    assert guided.dense_features(image).shape[1:] == (20, 20)
    with pytest.raises(ConfigError, match="Segmentor embeds words with learned prompts"):
        guided.embed_text("red star")
    plain = model_zoo.get_config("projects/denseclip/configs/quickstart_clip.py")
    with pytest.raises(ConfigError, match="Segmentor gives no dense map"):
        Predictor(plain, save_untrained(plain), device="cpu").dense_features(image)
    with pytest.raises(VocabularyError):
        zero_shot.similarity(" ", image)
    with pytest.raises(ImageError, match="call set_image first"):
        Predictor(config, weights, device="cpu").similarity("red star")
