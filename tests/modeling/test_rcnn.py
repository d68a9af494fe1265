import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, GeneralizedRCNN
from detectron2.structures import Boxes, Instances

from densedet.errors import ConfigError
from densedet.modeling.backbone import ClipBackbone
from densedet.modeling.meta_arch import OpenVocabularyRCNN
from densedet.modeling.meta_arch.rcnn import warn_of_padding
from densedet.modeling.roi_heads import ScoreEnsemble
from densedet.vocabulary import Vocabulary

LOSSES = {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
SIZES = {"b16": (96, 128), "l14": (112, 112), "resnet": (96, 128)}
KINDS = list(SIZES)


@pytest.fixture
def batch(make_record):
    def make(kind="b16"):
        height, width = SIZES[kind]
        first = make_record(
            height, width, [[4.0, 6.0, 44.0, 50.0], [40.0, 30.0, 110.0, 90.0]], [0, 1], seed=1
        )
        return [first, make_record(height - 20, width, [[10.0, 8.0, 70.0, 70.0]], [0], seed=2)]

    return make


def rows(instances, vocabulary):
    """(label, score, box) of every detection, in an order that classes do not matter for."""
    found = zip(
        instances.pred_classes.tolist(),
        instances.scores.tolist(),
        instances.pred_boxes.tensor.tolist(),
        strict=True,
    )
    return sorted(
        (round(s, 5), vocabulary.labels[k], [round(v, 2) for v in b]) for k, s, b in found
    )


def test_registered_under_its_class_name():
    assert META_ARCH_REGISTRY.get("OpenVocabularyRCNN") is OpenVocabularyRCNN


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", ["text", "learned"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step(make_rcnn, batch, kind, background, train_step):
    model = make_rcnn(kind, background=background)
    losses = train_step(model, batch(kind))
    assert set(losses) == LOSSES
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    for name, parameter in model.named_parameters():
        frozen = ".visual." in name
        assert parameter.requires_grad != frozen, name
        if frozen:
            assert parameter.grad is None, name
        else:
            assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("kind", KINDS)
def test_training_reduces_the_loss(make_rcnn, batch, kind, train_step):
    model, records = make_rcnn(kind), batch(kind)
    tower = copy.deepcopy(model.backbone.state_dict())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    totals = []
    for _ in range(12):
        totals.append(sum(train_step(model, records).values()).item())
        optimizer.step()
    assert totals[-1] < 0.6 * totals[0]
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, tower[name]) == (".visual." in f".{name}"), name


def test_images_without_annotation_train(make_rcnn, make_record, batch, train_step):
    model = make_rcnn(mask_norm="SyncBN")
    empty = make_record(96, 128, [], [])
    losses = train_step(model, [empty, batch()[0]])
    assert all(loss.isfinite() for loss in losses.values())
    losses = train_step(model, [empty, empty])
    assert set(losses) == LOSSES
    assert all(loss.isfinite() for loss in losses.values())
    assert losses["loss_mask"].item() == losses["loss_rpn_loc"].item() == 0.0
    assert losses["loss_cls"].item() > 0 and losses["loss_rpn_cls"].item() > 0
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


def test_labels_of_unseen_classes_do_not_train_the_classifier(make_rcnn, make_record, train_step):
    records = [make_record(96, 128, [[4.0, 6.0, 44.0, 50.0]], [2])]  # "zebra"
    model = make_rcnn(background_weight=0.0)
    losses = train_step(model, records)
    assert losses["loss_cls"].item() == 0.0
    assert all(loss.isfinite() for loss in losses.values())
    classes = model.roi_heads.box_predictor
    for parameter in (*classes.class_branch.parameters(), classes.classifier.temperature):
        assert parameter.grad.abs().sum() == 0


def test_without_masks(make_rcnn, batch, train_step):
    model = make_rcnn(mask_norm=None, test_score_thresh=0.0)
    records = batch()
    for record in records:
        record["instances"].remove("gt_masks")
    assert set(train_step(model, records)) == LOSSES - {"loss_mask"}
    result = model.eval()(records)[0]["instances"]
    assert len(result) and not result.has("pred_masks")


def test_bf16_autocast_on_the_cpu(make_rcnn, batch, train_step):
    model = make_rcnn(test_score_thresh=0.0)
    records = batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = train_step(model, records)
        assert all(loss.isfinite() for loss in losses.values())
        result = model.eval()(records)[0]["instances"]
    assert len(result) and result.scores.isfinite().all()
    plain = train_step(model, records)
    for name in ("loss_rpn_cls", "loss_rpn_loc"):  # sampled before scores can differ
        torch.testing.assert_close(losses[name].float(), plain[name], rtol=0.05, atol=0.02)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(make_rcnn, batch, kind, dtype, train_step):
    model = make_rcnn(kind, test_score_thresh=0.0).cuda()
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        losses = train_step(model, batch(kind))
        assert all(loss.isfinite() for loss in losses.values())
        result = model.eval()(batch(kind))[0]["instances"]
    assert len(result) and result.scores.is_cuda and result.scores.isfinite().all()


# --- inference and vocabularies -------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_inference_with_a_vocabulary_chosen_at_run_time(make_rcnn, batch, kind):
    model = make_rcnn(kind, test_score_thresh=0.0).eval()
    height, width = SIZES[kind]
    weights = {n: t.clone() for n, t in model.state_dict().items()}
    for names in (["cat", "dog"], [f"word {i}" for i in range(40)], ["cat"]):
        vocabulary = Vocabulary.from_names(names)
        model.set_vocabulary(vocabulary)
        assert model.vocabulary is vocabulary
        records = batch(kind)
        records[0]["height"], records[0]["width"] = 2 * height, 2 * width
        result = model(records)[0]["instances"]
        assert result.image_size == (2 * height, 2 * width)
        assert len(result) == 100 or len(names) < 40
        assert result.pred_classes.min() >= 0 and result.pred_classes.max() < len(names)
        assert result.scores.isfinite().all() and result.scores.min() >= 0
        assert result.scores.max() <= 1
        assert result.pred_masks.shape == (len(result), 2 * height, 2 * width)
        assert result.pred_masks.dtype == torch.bool
    after = model.state_dict()
    assert set(after) == set(weights)
    assert all(torch.equal(after[name], weights[name]) for name in weights)


def test_results_do_not_depend_on_the_order_of_the_categories(make_rcnn, batch, words):
    model = make_rcnn(test_score_thresh=0.0, test_topk_per_image=1000).eval()
    expected = rows(model(batch())[0]["instances"], words)
    turned = Vocabulary(words.categories[::-1])
    model.set_vocabulary(turned)
    found = rows(model(batch())[0]["instances"], turned)
    assert len(found) == len(expected) > 10
    for (score, label, box), (other_score, other_label, other_box) in zip(
        found, expected, strict=True
    ):
        assert label == other_label
        assert score == pytest.approx(other_score, abs=2e-5)
        assert box == pytest.approx(other_box, abs=0.02)


def test_the_unseen_flag_decides_the_exponent(make_rcnn, batch, words):
    model = make_rcnn(ensemble=ScoreEnsemble(0.0, 1.0, 75.0), test_score_thresh=-1.0).eval()
    model.roi_heads.box_predictor.test_nms_thresh = 1.0
    model.roi_heads.box_predictor.test_topk_per_image = -1
    one = Vocabulary.from_names(["cat"])
    scores = {}
    for name, vocabulary in (("seen", one), ("unseen", one.with_unseen(["cat"]))):
        model.set_vocabulary(vocabulary)
        scores[name] = model(batch())[0]["instances"].scores.sort().values
    assert not torch.allclose(scores["seen"], scores["unseen"])
    model.roi_heads.box_predictor.ensemble = None
    torch.testing.assert_close(model(batch())[0]["instances"].scores.sort().values, scores["seen"])


def test_a_vocabulary_is_embedded_once_and_when_it_is_needed(
    make_rcnn, batch, embedder, words, train_step
):
    model = make_rcnn()
    assert embedder.asked == []
    train_step(model, batch())
    train_step(model, batch())
    model.eval()(batch())
    model.inference(batch())
    assert embedder.asked == [words]
    skipped, chosen = Vocabulary.from_names(["a"]), Vocabulary.from_names(["b", "c"])
    model.set_vocabulary(skipped)
    model.set_vocabulary(chosen)
    assert embedder.asked == [words]
    model.inference(batch())
    model(batch())
    assert embedder.asked == [words, chosen]


def test_a_checkpoint_serves_every_vocabulary(make_rcnn, batch):
    first, second = make_rcnn(background="learned"), make_rcnn(background="learned")
    first.eval()(batch())
    state = first.state_dict()
    holding_classes = ("vectors", "groups", "text_background", "unseen", "pixel_mean")
    assert not [n for n in state if n.endswith(holding_classes)]
    second.set_vocabulary(Vocabulary.from_names([f"word {i}" for i in range(9)]))
    second.eval()(batch())
    keys = second.load_state_dict(state)
    assert not keys.missing_keys and not keys.unexpected_keys


def test_evaluation_in_inference_mode_does_not_hinder_training(make_rcnn, batch, train_step):
    model = make_rcnn("b16", backbone={"cache_size": 4})
    with torch.inference_mode():
        model.eval()(batch())
    model(batch())
    losses = train_step(model, batch())
    assert all(loss.isfinite() for loss in losses.values())


def test_another_vocabulary_on_the_same_image_costs_no_pass_of_the_tower(
    make_rcnn, batch, words, count_calls
):
    model = make_rcnn(backbone={"cache_size": 4}, test_score_thresh=0.0).eval()
    plain = make_rcnn(test_score_thresh=0.0).eval()
    calls = count_calls(model.backbone.bottom_up.bottom_up.visual)
    for vocabulary in (words, Vocabulary.from_names(["tree", "house", "cloud", "river"]), words):
        found = []
        for detector in (model, plain):
            detector.set_vocabulary(vocabulary)
            found.append(detector(batch())[0]["instances"])
        torch.testing.assert_close(found[0].scores, found[1].scores)
        assert torch.equal(found[0].pred_classes, found[1].pred_classes)
        assert torch.equal(found[0].pred_masks, found[1].pred_masks)
    assert calls == [2]


def test_masks_of_given_boxes(make_rcnn, batch):
    model = make_rcnn().eval()
    given = []
    for record in batch():
        instances = Instances(tuple(record["image"].shape[1:]))
        instances.pred_boxes = Boxes(torch.tensor([[10.0, 10.0, 50.0, 60.0]]))
        instances.pred_classes = torch.tensor([1])
        given.append(instances)
    results = model.inference(batch(), given)
    assert [r["instances"].pred_masks.shape for r in results] == [(1, 96, 128), (1, 76, 128)]


# --- pixels ---------------------------------------------------------------------------------------


def test_pixel_statistics_are_those_of_the_weights(make_rcnn, make_record):
    model = make_rcnn()
    visual = model.backbone.bottom_up.bottom_up.visual
    mean = [255 * v for v in (0.48145466, 0.4578275, 0.40821073)]
    std = [255 * v for v in (0.26862954, 0.26130258, 0.27577711)]
    assert tuple(visual.pixel_mean) == (0.48145466, 0.4578275, 0.40821073)
    torch.testing.assert_close(model.pixel_mean.flatten(), torch.tensor(mean))
    torch.testing.assert_close(model.pixel_std.flatten(), torch.tensor(std))
    record = make_record(40, 60, [], [])
    images = model.preprocess_image([record])
    assert images.tensor.shape == (1, 3, 64, 64) and images.image_sizes == [(40, 60)]
    unit = (record["image"] / 255).permute(1, 2, 0)
    expected = (unit - torch.tensor(visual.pixel_mean)) / torch.tensor(visual.pixel_std)
    torch.testing.assert_close(
        images.tensor[0, :, :40, :60].permute(1, 2, 0), expected, rtol=1e-4, atol=1e-5
    )
    # padding is zero after normalisation
    assert images.tensor[0, :, 40:].abs().max() == images.tensor[0, :, :, 60:].abs().max() == 0


def parts(model):
    """The arguments that a model was made of, without its backbone."""
    return {
        "vocabulary": model.vocabulary,
        "embedder": model.embedder,
        "proposal_generator": model.proposal_generator,
        "roi_heads": model.roi_heads,
    }


@pytest.mark.parametrize("name", ["pixel_mean", "pixel_std"])
def test_pixel_statistics_can_be_given(make_rcnn, name):
    model = make_rcnn()
    values = [123.675, 116.28, 103.53]
    other = OpenVocabularyRCNN(backbone=model.backbone, **parts(model), **{name: values})
    assert getattr(other, name).flatten().tolist() == pytest.approx(values)
    kept = {"pixel_mean": "pixel_std", "pixel_std": "pixel_mean"}[name]
    assert torch.equal(getattr(other, kept), getattr(model, kept))


class PlainBackbone(Backbone):
    """No CLIP tower."""

    def forward(self, images):
        return {
            f"p{i}": F.avg_pool2d(images, 2**i).repeat(1, 11, 1, 1)[:, :32] for i in range(2, 7)
        }

    def output_shape(self):
        return {f"p{i}": ShapeSpec(channels=32, stride=2**i) for i in range(2, 7)}

    @property
    def size_divisibility(self):
        return 64


def test_a_backbone_without_clip_needs_statistics(make_rcnn, batch, train_step):
    model = make_rcnn()
    with pytest.raises(ConfigError, match="PlainBackbone has no CLIP tower or timm model: give"):
        OpenVocabularyRCNN(backbone=PlainBackbone(), **parts(model))
    plain = OpenVocabularyRCNN(
        backbone=PlainBackbone(), **parts(model), pixel_mean=[120.0] * 3, pixel_std=[60.0] * 3
    )
    assert set(train_step(plain, batch())) == LOSSES


def test_squares(make_rcnn, batch, make_record, train_step):
    model = make_rcnn(backbone={"square_size": 128}, test_score_thresh=0.0)
    assert model.preprocess_image(batch()).tensor.shape == (2, 3, 128, 128)
    assert set(train_step(model, batch())) == LOSSES
    result = model.eval()(batch())[1]["instances"]
    assert result.image_size == (76, 128)
    assert result.pred_boxes.tensor[:, 3].max() <= 76


@pytest.mark.parametrize("size", [(129, 40), (40, 129)])
def test_an_image_larger_than_the_square_is_refused_not_cut(make_rcnn, make_record, size):
    model = make_rcnn(backbone={"square_size": 128}).eval()
    record = {**make_record(*size, [], []), "file_name": "large.jpg"}
    message = rf"large\.jpg has {size[0]}x{size[1]} .* square_size 128 .* longest side"
    with pytest.raises(ConfigError, match=message):
        model([record])


def test_it_is_a_generalized_rcnn(make_rcnn):
    model = make_rcnn()
    assert isinstance(model, GeneralizedRCNN)
    assert model.input_format is None and model.vis_period == 0


def test_a_model_of_detectron2_that_lets_the_tower_see_padding_is_named(make_rcnn, caplog):
    model = make_rcnn("b16")
    warn_of_padding(model)
    assert not caplog.records
    plain = torch.nn.Module.__new__(GeneralizedRCNN)
    torch.nn.Module.__init__(plain)
    plain.backbone = model.backbone
    warn_of_padding(plain)
    assert "GeneralizedRCNN pads the images of a batch" in caplog.text
    caplog.clear()
    for module in plain.modules():
        if isinstance(module, ClipBackbone):
            module.square_size = 64
    warn_of_padding(plain)
    assert not caplog.records
