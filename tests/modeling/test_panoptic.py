"""Open-vocabulary Panoptic FPN: its two branches, their combination, and other vocabularies."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, PanopticFPN

from densedet.errors import ConfigError, VocabularyError
from densedet.modeling.mask_ensemble import MaskEnsemble
from densedet.modeling.meta_arch import OpenVocabularyPanopticFPN, OpenVocabularyRCNN
from densedet.modeling.open_vocabulary_sem_seg_head import OpenVocabularySegmentationHead
from densedet.modeling.roi_heads import CosineClassifier, ScoreEnsemble
from densedet.vocabulary import Category, Vocabulary

EMBED, CHANNELS = 24, 32
KINDS = ["b16", "l14", "resnet"]
SIZES = {"b16": (96, 128), "l14": (112, 112), "resnet": (96, 128)}
LOSSES = {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc", "loss_sem_seg"}
# things and stuff in turn; "zebra" and "sand" are unseen
WORLD = Vocabulary(
    (
        Category("sky", ("sky", "cloud"), "stuff"),
        Category("cat", ("cat", "kitten")),
        Category("grass", kind="stuff"),
        Category("dog"),
        Category("sand", kind="stuff", seen=False),
        Category("zebra", seen=False),
    )
)


@pytest.fixture
def make_panoptic(make_rcnn):
    """``make_panoptic(kind, vocabulary, ensemble, mask_norm, dense, ..., **settings)``."""

    def make(
        kind="b16",
        vocabulary=WORLD,
        ensemble=None,
        mask_norm="GN",
        dense=True,
        cache_size=0,
        box_ensemble=None,
        **settings,
    ):
        backbone = {"dense": True, "cache_size": cache_size}
        rcnn = make_rcnn(kind, mask_norm, backbone=backbone, test_score_thresh=0.0)
        rcnn.roi_heads.box_predictor.ensemble = box_ensemble
        shapes = rcnn.backbone.output_shape()
        levels = {n: ShapeSpec(channels=CHANNELS, stride=shapes[n].stride) for n in ("p2", "p3")}
        torch.manual_seed(5)
        head = OpenVocabularySegmentationHead(
            input_shape=levels,
            conv_dims=CHANNELS,
            common_stride=shapes["p2"].stride,
            norm="GN",
            dropout=0.0,
            classifier=CosineClassifier(EMBED, 20.0),
        )
        if not dense:
            rcnn.backbone._dense_shape = {}
        combination = {
            "combine_stuff_area_thresh": 1,
            "combine_instances_score_thresh": 0.0,
            **settings,
        }
        return OpenVocabularyPanopticFPN(
            vocabulary=vocabulary,
            embedder=rcnn.embedder,
            backbone=rcnn.backbone,
            proposal_generator=rcnn.proposal_generator,
            roi_heads=rcnn.roi_heads,
            sem_seg_head=head,
            mask_ensemble=ensemble,
            **combination,
        )

    return make


@pytest.fixture
def batch(make_record):
    """Two images of different sizes, with labels of a vocabulary that has WORLD's names."""

    def make(kind="b16", vocabulary=WORLD):
        height, width = SIZES[kind]
        cat, dog = vocabulary.index("cat"), vocabulary.index("dog")
        boxes = [[4.0, 6.0, 44.0, 50.0], [40.0, 30.0, 110.0, 90.0]]
        first = make_record(height, width, boxes, [cat, dog], seed=1)
        second = make_record(height - 20, width, [[10.0, 8.0, 70.0, 70.0]], [dog], seed=2)
        for record in (first, second):
            labels = torch.full(record["image"].shape[1:], vocabulary.index("grass"))
            labels[:30] = vocabulary.index("sky")
            labels[:, :3] = 255
            for mask, label in zip(
                record["instances"].gt_masks.tensor, record["instances"].gt_classes, strict=True
            ):
                labels[mask] = label
            record["sem_seg"] = labels
        return [first, second]

    return make


def test_it_is_both_of_detectron2s_models():
    assert META_ARCH_REGISTRY.get("OpenVocabularyPanopticFPN") is OpenVocabularyPanopticFPN
    assert issubclass(OpenVocabularyPanopticFPN, PanopticFPN)
    assert issubclass(OpenVocabularyPanopticFPN, OpenVocabularyRCNN)


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step(make_panoptic, batch, kind, train_step):
    model = make_panoptic(kind)
    losses = train_step(model, batch(kind))
    assert set(losses) == LOSSES
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    for name, parameter in model.named_parameters():
        frozen = ".visual." in name
        assert parameter.requires_grad != frozen, name
        if not frozen:
            assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_training_reduces_the_loss(make_panoptic, batch, train_step):
    model, records = make_panoptic(), batch()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    totals, semantic = [], []
    for _ in range(10):
        losses = train_step(model, records)
        totals.append(sum(losses.values()).item())
        semantic.append(losses["loss_sem_seg"].item())
        optimizer.step()
    assert totals[-1] < 0.7 * totals[0] and semantic[-1] < 0.7 * semantic[0]


def test_labels_are_indices_of_the_vocabulary_whatever_its_order(make_panoptic, batch, train_step):
    """In the order things, stuff both branches could do without it; here the two differ."""
    turned = Vocabulary(WORLD.categories[::-1])
    losses = train_step(make_panoptic(), batch())
    others = train_step(make_panoptic(vocabulary=turned), batch(vocabulary=turned))
    for name, loss in losses.items():
        torch.testing.assert_close(others[name], loss, rtol=1e-4, atol=1e-6, msg=name)
    records = batch()
    classes = [record["instances"].gt_classes.clone() for record in records]
    train_step(make_panoptic(), records)
    for record, before in zip(records, classes, strict=True):
        assert torch.equal(record["instances"].gt_classes, before), "the input is not changed"


def test_images_without_things_train(make_panoptic, make_record, batch, train_step):
    empty = make_record(96, 128, [], [])
    empty["sem_seg"] = torch.full((96, 128), 255)
    for records in ([empty, batch()[0]], [empty, empty], [batch()[1]]):
        losses = train_step(make_panoptic(), records)
        assert set(losses) == LOSSES and all(loss.isfinite() for loss in losses.values())


def test_bf16_autocast_on_the_cpu(make_panoptic, batch, train_step):
    model = make_panoptic(ensemble=MaskEnsemble(0.2, 0.6, 50.0))
    with torch.autocast("cpu", torch.bfloat16):
        losses = train_step(model, batch())
        result = model.eval()(batch())[0]
    assert all(loss.isfinite() for loss in losses.values())
    assert result["sem_seg"].full().isfinite().all() and result["instances"].scores.isfinite().all()


# --- evaluation -----------------------------------------------------------------------------------


def check_result(result, vocabulary, size):
    """Ids, categories and kinds of one picture agree with each other; a set of the kinds found."""
    panoptic, segments = result["panoptic_seg"]
    assert panoptic.shape == size and panoptic.dtype == torch.int32
    assert result["sem_seg"].shape == (len(vocabulary), *size)
    assert result["sem_seg"].full().isfinite().all()
    assert result["instances"].image_size == size
    ids = set(panoptic.unique().tolist()) - {0}
    assert ids == {s["id"] for s in segments} and len(ids) == len(segments)
    for segment in segments:
        assert (vocabulary.kinds[segment["category_id"]] == "thing") is segment["isthing"]
    things = [vocabulary.kinds[k] for k in result["instances"].pred_classes.tolist()]
    assert set(things) <= {"thing"}
    stuff = [s["category_id"] for s in segments if not s["isthing"]]
    assert len(stuff) == len(set(stuff)), "stuff has one segment a class"
    return {s["isthing"] for s in segments}


@pytest.mark.parametrize("ensemble", [None, MaskEnsemble(0.2, 0.6, 50.0)], ids=["heads", "dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_segments_agree(make_panoptic, make_record, kind, ensemble):
    """Odd sizes, results of another size than the image, batches of one to three."""
    model = make_panoptic(kind, ensemble=ensemble).eval()
    records = [make_record(h, w, [], [], seed=h) for h, w in ((61, 97), (96, 70), (33, 34))]
    for record in records:
        del record["instances"]
    records[1].update(height=120, width=81)
    sizes = [(61, 97), (120, 81), (33, 34)]
    for count in (1, 2, 3):
        results = model(records[:count])
        kinds = [check_result(*each) for each in zip(results, [WORLD] * count, sizes, strict=False)]
        assert {True, False} in kinds


def test_things_together_against_each_stuff(make_panoptic, batch):
    """Outside the instances a pixel is stuff where that is likelier than all things together."""
    model = make_panoptic(combine_stuff_area_thresh=40).eval()
    things = [i for i, kind in enumerate(WORLD.kinds) if kind == "thing"]
    seen = set()
    for result in model(batch()):
        panoptic, segments = result["panoptic_seg"]
        probability = result["sem_seg"].full().softmax(0)
        thing = probability[things].sum(0)
        probability[things] = 0
        best, label = probability.max(0)
        category = torch.full_like(panoptic, -1)
        free = torch.ones_like(panoptic, dtype=torch.bool)
        for segment in segments:
            mask = panoptic == segment["id"]
            category[mask] = segment["category_id"]
            free &= ~mask if segment["isthing"] else free
        for index in (0, 2, 4):
            expected = free & (label == index) & (best > thing)
            found = free & (category == index)
            if expected.sum() >= 40:
                assert torch.equal(found, expected)
                seen.add(index)
            else:
                assert not found.any()
    assert seen


def summary(result, vocabulary):
    """Labels, kinds, scores and areas of the segments; the label that wins each pixel."""
    panoptic, segments = result["panoptic_seg"]
    rows = sorted(
        (
            vocabulary.labels[s["category_id"]],
            s["isthing"],
            round(s.get("score", 0.0), 4),
            int((panoptic == s["id"]).sum()),
        )
        for s in segments
    )
    labels = [vocabulary.labels[i] for i in result["sem_seg"].full().argmax(0).flatten().tolist()]
    return rows, labels


@pytest.mark.parametrize("ensemble", [None, MaskEnsemble(0.2, 0.6, 50.0)], ids=["heads", "dense"])
def test_results_do_not_depend_on_the_order_of_the_categories(make_panoptic, batch, ensemble):
    model = make_panoptic(ensemble=ensemble).eval()
    expected = [summary(result, WORLD) for result in model(batch())]
    for order in ([1, 3, 5, 0, 2, 4], [5, 4, 3, 2, 1, 0]):
        turned = Vocabulary(tuple(WORLD.categories[i] for i in order))
        model.set_vocabulary(turned)
        assert [summary(result, turned) for result in model(batch())] == expected
    assert any(len(rows) > 3 for rows, _ in expected)


def test_the_ensemble_rescores_instances_and_regions(make_panoptic, batch):
    """The parts are tested on their own; here, that both get the right image's dense map."""
    plain = make_panoptic().eval()
    ensemble = MaskEnsemble(0.3, 0.8, 50.0)
    mixed = make_panoptic(ensemble=ensemble).eval()
    instances, maps = plain.inference(batch(), do_postprocess=False)
    found, logs = mixed.inference(batch(), do_postprocess=False)
    dense = plain.backbone(plain.preprocess_image(batch()).tensor)["vlm"]
    things = torch.tensor([1, 3, 5])
    detector, pixels = mixed.roi_heads.box_predictor.classifier, mixed.sem_seg_head.classifier
    assert len(maps) == 2 and [tuple(x.shape) for x in maps] == [(6, 96, 128), (6, 76, 128)]
    for i in range(2):
        assert torch.equal(found[i].pred_classes, instances[i].pred_classes)
        instances[i].pred_classes = torch.searchsorted(things, instances[i].pred_classes)
        scores = ensemble.rescore(instances[i], dense[i], 16, detector)
        torch.testing.assert_close(found[i].scores, scores)
        assert not torch.allclose(scores, instances[i].scores, atol=0.01)
        expected = ensemble.reclassify(maps[i], dense[i], 16, pixels)
        torch.testing.assert_close(logs[i].full(), expected.full())


def test_no_instance_is_found(make_panoptic, batch):
    model = make_panoptic(ensemble=MaskEnsemble(0.2, 0.6, 50.0)).eval()
    model.roi_heads.box_predictor.test_score_thresh = 2.0
    for result, record in zip(model(batch()), batch(), strict=True):
        kinds = check_result(result, WORLD, tuple(record["image"].shape[1:]))
        assert kinds == {False} and len(result["instances"]) == 0


# --- vocabularies ---------------------------------------------------------------------------------


def test_a_vocabulary_chosen_at_run_time(make_panoptic, batch, embedder):
    model = make_panoptic().eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    model(batch())
    model(batch())
    assert embedder.asked == [WORLD]
    stuff = [Category(f"stuff {i}", kind="stuff") for i in range(3)]
    things = [Category(f"thing {i}", seen=False) for i in range(30)]
    for words in (Vocabulary((things[0], stuff[0])), Vocabulary((*stuff, *things))):
        model.set_vocabulary(words)
        assert model.vocabulary is words
        for result, record in zip(model(batch()), batch(), strict=True):
            check_result(result, words, tuple(record["image"].shape[1:]))
        assert embedder.asked[-1] is words
    after = model.state_dict()
    assert weights.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in weights.items())
    assert not [n for n in weights if n.endswith(("vectors", "groups", "unseen"))]


def test_another_vocabulary_on_the_same_images_costs_no_pass_of_the_tower(
    make_panoptic, batch, count_calls
):
    model = make_panoptic(cache_size=4).eval()
    calls = count_calls(model.backbone.bottom_up.bottom_up.visual)
    model(batch())
    model.set_vocabulary(Vocabulary(WORLD.categories[:2]))
    model(batch())
    assert calls == [2]


def test_evaluation_in_inference_mode_does_not_hinder_training(make_panoptic, batch, train_step):
    model = make_panoptic()
    with torch.inference_mode():
        model.eval()(batch())
    assert all(loss.isfinite() for loss in train_step(model, batch()).values())


@pytest.mark.parametrize(("lacking", "there"), [("stuff", "thing"), ("thing", "stuff")])
def test_things_and_stuff_are_needed(make_panoptic, batch, lacking, there):
    words = WORLD.of_kind(there)
    message = f'the vocabulary of 3 categories has no {lacking}.*set "kind" of the categories'
    with pytest.raises(VocabularyError, match=message):
        make_panoptic(vocabulary=words)
    model = make_panoptic().eval()
    with pytest.raises(VocabularyError, match=message):
        model.set_vocabulary(words)
    assert model.vocabulary is WORLD
    check_result(model(batch()[:1])[0], WORLD, (96, 128))


def test_parts_that_do_not_fit(make_panoptic):
    with pytest.raises(ConfigError, match="no mask branch"):
        make_panoptic(mask_norm=None)
    with pytest.raises(ConfigError, match="mask_ensemble needs the dense map .*dense=True"):
        make_panoptic(ensemble=MaskEnsemble(0.2, 0.6, 50.0), dense=False)
    ensemble = ScoreEnsemble(0.1, 0.8, 50.0)
    with pytest.raises(ConfigError, match="would both mix the dense map .* one of them to null"):
        make_panoptic(ensemble=MaskEnsemble(0.2, 0.6, 50.0), box_ensemble=ensemble)
