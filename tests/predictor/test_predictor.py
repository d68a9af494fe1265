"""What predictors find and refuse; the models have untrained heads."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from pycocotools import mask as mask_util

from densedet import model_zoo
from densedet.errors import CheckpointError, ConfigError, ImageError, VocabularyError
from densedet.predictor import Predictor, coco_results, segment_results
from densedet.predictor.images import T, as_pixels, prepare
from densedet.vocabulary import Vocabulary


def test_labels_are_the_users_own(predictor, image):
    predictor.set_vocabulary("crimson star,red star;blue ring")
    found = predictor.predict(image).instances
    assert len(found) and set(found.pred_classes.tolist()) <= {0, 1}
    assert found.image_size == (160, 160) and found.pred_masks.shape[1:] == (160, 160)
    assert predictor.predict(image).labels == tuple(
        ("crimson star", "blue ring")[i] for i in found.pred_classes.tolist()
    )
    results = coco_results(found, 7, predictor.vocabulary)
    assert {r["label"] for r in results} <= {"crimson star", "blue ring"}
    assert all(r["image_id"] == 7 and r["category_id"] in (1, 2) for r in results)
    for row, result in enumerate(results):
        x0, y0, x1, y1 = found.pred_boxes.tensor[row].tolist()
        assert result["bbox"] == pytest.approx([x0, y0, x1 - x0, y1 - y0], abs=0.01)
        mask = mask_util.decode(result["segmentation"])
        assert np.array_equal(mask.astype(bool), found.pred_masks[row].numpy())


def test_what_training_had_labels_of_counts_as_seen(predictor):
    predictor.set_vocabulary("red thing,red star;red ball;teapot")
    assert predictor.vocabulary.seen == (True, False, False)


def test_a_vocabulary_changes_no_weight(predictor, image):
    before = {k: v.clone() for k, v in predictor.model.state_dict().items()}
    predictor.set_vocabulary(["red star", "teapot"])
    predictor.predict(image)
    after = predictor.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize("words", ["", [], "red star;red star"])
def test_bad_vocabularies_are_refused(predictor, words):
    with pytest.raises(VocabularyError):
        predictor.set_vocabulary(words)


def test_missing_and_foreign_weights_are_refused(config, weights, tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.pth do not exist"):
        Predictor(config, tmp_path / "absent.pth")
    closed = model_zoo.get_config("projects/fvit/configs/quickstart_closed_set.py")
    with pytest.raises(ConfigError, match="ClosedSetRCNN has no vocabulary"):
        Predictor(closed, weights)
    torch.save({"model": {"a": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not fit OpenVocabularyRCNN"):
        Predictor(config, tmp_path / "other.pth")


def test_a_config_needs_a_model_and_an_evaluation(config, weights):
    without = config.copy()
    del without["model"]
    with pytest.raises(ConfigError, match="the config needs 'model'"):
        Predictor(without, weights)
    for place in ("dataloader", "dataloader.test", "dataloader.test.mapper"):
        without = config.copy()
        parent, _, name = place.rpartition(".")
        del (OmegaConf.select(without, parent) if parent else without)[name]
        with pytest.raises(ConfigError, match=r"needs .* 'dataloader\.test\.mapper\.augmenta"):
            Predictor(without, weights)
    without = config.copy()
    del without["train"]
    with pytest.raises(ConfigError, match=r"weights model_final\.pth do not exist"):
        Predictor(without)
    assert Predictor(without, weights, device="cpu").tasks == ("instance",)


@pytest.mark.parametrize("device", ["gpu", "meta", "xpu", "cuda:99", "cuda:-1", ""])
def test_devices_that_are_not_there_are_refused(config, weights, device):
    with pytest.raises(ConfigError, match=f"^device='?{device}"):
        Predictor(config, weights, device=device)


def test_a_head_that_fixed_its_classes_says_so(save_untrained):
    config = model_zoo.get_config("projects/denseclip/configs/quickstart.py")
    predictor = Predictor(config, save_untrained(config))
    with pytest.raises(VocabularyError, match="predict_from"):
        predictor.set_vocabulary("red star")


WORDS = Vocabulary.parse("ball,red ball;ring").with_stuff(Vocabulary.parse("grass,lawn;sky;sea"))


def test_panoptic_segments_have_the_users_labels(panoptic, image):
    panoptic.set_vocabulary(WORDS)
    found = panoptic.predict(image)
    assert found.panoptic.shape == found.semantic.shape == (160, 160)
    masks, segments = found.segment_masks()
    assert len(masks) == len(segments) == len(found.panoptic.unique().nonzero())
    results = segment_results(masks, segments, 7, WORDS)
    assert {r["isthing"] for r in results} == {True, False}
    for result, mask in zip(results, masks, strict=True):
        assert result["label"] == WORDS.labels[result["category_id"] - 1]
        assert result["isthing"] == (result["label"] in ("ball", "ring"))
        assert ("score" in result) == result["isthing"]
        assert result["area"] == mask.sum() and result["image_id"] == 7
        assert np.array_equal(mask_util.decode(result["segmentation"]).astype(bool), mask.numpy())


def test_panoptic_models_need_stuff(panoptic):
    with pytest.raises(VocabularyError, match="has no stuff"):
        panoptic.set_vocabulary("ball;ring")


def test_every_pixel_of_a_semantic_map_has_one_class(zero_shot, image):
    zero_shot.set_vocabulary(WORDS)
    found = zero_shot.predict(image)
    assert found.instances is None and found.panoptic is None and found.labels == ()
    masks, segments = found.segment_masks()
    assert masks.sum(dim=0).eq(1).all()
    for mask, segment in zip(masks, segments, strict=True):
        assert found.semantic[mask].eq(segment["category_id"]).all() and mask.any()


def test_detections_have_no_segments(predictor, image):
    with pytest.raises(ValueError, match="no segments"):
        predictor.predict(image).segment_masks()


def test_a_view_has_words_and_a_picture_of_its_own(predictor, image):
    predictor.set_vocabulary("red star;blue ring")
    predictor.set_image(image)
    view = predictor.with_vocabulary(["teapot"])
    assert view.model is predictor.model and view.vocabulary.labels == ("teapot",)
    assert set(view.predict().labels) == {"teapot"}  # on the same picture
    view.set_image(image[:80])
    assert view.predict().instances.image_size == (80, 160)
    assert predictor.vocabulary.labels == ("red star", "blue ring")
    assert predictor.predict().instances.image_size == (160, 160)


def test_tasks(predictor, panoptic, zero_shot, guided):
    assert predictor.tasks == ("instance",)
    assert panoptic.tasks == ("panoptic", "instance", "semantic")
    assert zero_shot.tasks == guided.tasks == ("semantic",)


def test_arrays_pillow_images_and_files_are_the_same_picture(zero_shot, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "a.png")
    zero_shot.set_vocabulary(WORDS)
    zero_shot.set_image(image)
    expected = zero_shot.predict().semantic
    for same in (Image.fromarray(image), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert zero_shot.predict(same).semantic.equal(expected)
    turned = Image.fromarray(np.rot90(image))  # to the left; EXIF says: turn to the right
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        assert zero_shot.predict(opened).semantic.equal(expected)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((8, 8)), r"shape \(8, 8\) and type float64"),
        (np.zeros((8, 8, 4), np.uint8), r"\(8, 8, 4\)"),
        (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\)"),
        (torch.zeros(8, 8, 3), "not a Tensor"),
        ("absent.jpg", "absent.jpg does not exist"),
    ],
)
def test_what_is_no_picture_is_refused(zero_shot, wrong, message):
    with pytest.raises(ImageError, match=message):
        zero_shot.set_image(wrong)


def test_a_truncated_pillow_image_is_refused(zero_shot, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with (
        Image.open(tmp_path / "a.png") as opened,
        pytest.raises(ImageError, match=r"a\.png is "),
    ):
        zero_shot.set_image(opened)
    with pytest.raises(ImageError, match=r"^image 9: image .*a\.png is truncated"):
        zero_shot.predict_batch([*[image] * 9, tmp_path / "a.png"])


def test_prepared_pictures_can_be_compared(image):
    one, other = (prepare(image, T.AugmentationList([])) for _ in range(2))
    assert one != other and len({one, other}) == 2


def test_a_picture_must_be_set_or_given(config, weights):
    with pytest.raises(ImageError, match="call set_image first"):
        Predictor(config, weights, device="cpu").predict()


def test_a_batch_gives_what_each_picture_gives(predictor, zero_shot, image):
    pictures = [image, image[:120, :96], image[::-1].copy(), image[20:, 30:], image[:120, 40:136]]
    predictor.set_vocabulary("red star;blue ring")
    zero_shot.set_vocabulary(WORDS)
    for picture, found in zip(pictures, predictor.predict_batch(iter(pictures)), strict=True):
        alone = predictor.predict(picture).instances
        assert found.instances.image_size == picture.shape[:2]
        assert found.instances.pred_classes.equal(alone.pred_classes)
        torch.testing.assert_close(found.instances.scores, alone.scores)
    for picture, found in zip(pictures, zero_shot.predict_batch(pictures), strict=True):
        assert found.semantic.equal(zero_shot.predict(picture).semantic)
    assert predictor.predict_batch([]) == []


def test_precision(config, weights, predictor, image):
    fast = Predictor(config, weights, device="cpu", precision="bf16")
    dense, exact = fast.dense_features(image), predictor.dense_features(image)
    assert dense.dtype == torch.float32 and not dense.equal(exact)
    assert (dense * exact).sum(dim=0).min() > 0.99
    fast.set_vocabulary("red star;blue ring")
    predictor.set_vocabulary("red star;blue ring")
    found, expected = (p.predict(image).instances.scores for p in (fast, predictor))
    assert found.dtype == torch.float32 and found[0] == pytest.approx(float(expected[0]), abs=0.05)
    with pytest.raises(ConfigError, match="choose from fp32, bf16, fp16"):
        Predictor(config, weights, device="cpu", precision="int8")
    with pytest.raises(ConfigError, match="fp16 needs CUDA"):
        Predictor(config, weights, device="cpu", precision="fp16")


@pytest.mark.parametrize(
    ("mode", "kinds"),
    [
        ("CMYK", ("TIFF", "JPEG")),
        ("LA", ("TIFF", "PNG")),
        ("RGBA", ("TIFF", "PNG")),
        ("P", ("TIFF", "PNG", "GIF")),
        ("L", ("TIFF", "PNG", "GIF", "JPEG")),
        ("1", ("TIFF", "PNG")),
    ],
)
def test_colours_of_any_mode_are_read_whatever_is_transparent(tmp_path, image, mode, kinds):
    opened = Image.fromarray(image).resize((20, 30))
    if "A" in mode:
        opened.putalpha(Image.new("L", opened.size, 0))
    opened = opened.quantize(16) if mode == "P" else opened.convert(mode)
    colours = np.asarray(opened.convert("L" if mode == "LA" else "RGB").convert("RGB"))
    for kind in kinds:
        transparency = {"transparency": 0} if mode == "P" and kind != "TIFF" else {}
        opened.save(tmp_path / "a", format=kind, **transparency)
        found = as_pixels(tmp_path / "a")
        with Image.open(tmp_path / "a") as again:
            assert np.array_equal(found, as_pixels(again))
        if kind == "JPEG":
            assert np.abs(found.astype(int) - colours).mean() < 12
        else:
            assert np.array_equal(found, colours)
