"""Properties of every model: order of the words, synonyms, labels."""

import numpy as np
import pytest
import torch

from densedet.vocabulary import Category, Vocabulary

THINGS = ["red star", "blue ring", "green ball", "white cone", "teapot"]
STUFF = ["grass", "sky", "sand"]
MODELS = ["predictor", "panoptic", "zero_shot", "guided"]


def vocabulary(order, label=str, synonyms=lambda name: (name,)):
    kinds = dict.fromkeys(THINGS, "thing") | dict.fromkeys(STUFF, "stuff")
    return Vocabulary(tuple(Category(label(n), synonyms(n), kinds[n]) for n in order))


def everything(predictor, words, image, name=str):
    """What was found, by label: masks of the classes, and detections in order of their scores."""
    predictor.set_vocabulary(words)
    found = predictor.predict(image)
    assert found.vocabulary.labels == words.labels
    maps = {}
    if found.semantic is not None:
        maps["semantic"] = {name(k): found.semantic == i for i, k in enumerate(words.labels)}
    if found.panoptic is not None:
        categories = found.categories
        maps["panoptic"] = {name(k): categories == i for i, k in enumerate(words.labels)}
    instances = []
    if found.instances is not None:
        boxes, scores = found.instances.pred_boxes.tensor, found.instances.scores
        labels = map(name, found.labels)
        instances = sorted(zip(labels, scores.tolist(), boxes.tolist(), strict=True))
    return maps, instances


def assert_same(one, other):
    for kind, masks in one[0].items():
        assert masks.keys() == other[0][kind].keys()
        wrong = sum(int((mask != other[0][kind][label]).sum()) for label, mask in masks.items())
        assert wrong <= 4  # a tie that rounding decides
    assert [label for label, *_ in one[1]] == [label for label, *_ in other[1]]
    for row, same in zip(one[1], other[1], strict=True):
        assert row[1] == pytest.approx(same[1], abs=1e-5)
        assert row[2] == pytest.approx(same[2], abs=1e-2)


@pytest.fixture(params=MODELS)
def model(request):
    return request.getfixturevalue(request.param)


def test_the_order_of_the_words_does_not_matter(model, image):
    rng = np.random.default_rng(0)
    expected = everything(model, vocabulary(THINGS + STUFF), image)
    assert expected[1] or any(m.any() for m in expected[0]["semantic"].values())
    for _ in range(3):
        order = [str(name) for name in rng.permutation(THINGS + STUFF)]
        assert_same(everything(model, vocabulary(order), image), expected)


@pytest.mark.parametrize("seed", range(4))
def test_random_vocabularies_in_any_order(zero_shot, guided, image, seed):
    """Categories of one to three names of Shapes World; others are all one to the tiny CLIP."""
    rng = np.random.default_rng(seed)
    world = Vocabulary.named("shapes_world_kind").labels
    names = iter(rng.choice(world, 30, replace=False).tolist())
    groups = [tuple(next(names) for _ in range(rng.integers(1, 4))) for _ in range(10)]

    def shuffled():
        return Vocabulary(
            tuple(
                Category(f"label {i}", tuple(rng.permutation(groups[i]).tolist()), "stuff")
                for i in rng.permutation(10)
            )
        )

    for model in (zero_shot, guided):
        assert_same(everything(model, shuffled(), image), everything(model, shuffled(), image))


def test_the_order_of_synonyms_does_not_matter(model, image):
    kinds = {"grass": ("grass", "green lawn"), "teapot": ("teapot", "red plus", "kettle")}
    first = vocabulary(THINGS + STUFF, synonyms=lambda n: kinds.get(n, (n,)))
    second = vocabulary(THINGS + STUFF, synonyms=lambda n: kinds.get(n, (n,))[::-1])
    assert_same(everything(model, first, image), everything(model, second, image))


def test_labels_are_shown_and_never_prompted(model, image):
    """The same prompts under strange labels: the same result, under exactly these labels."""
    strange = {name: f"Ä {i}; $x$, \n«{name[::-1]}»" for i, name in enumerate(THINGS + STUFF)}
    back = {label: name for name, label in strange.items()}
    plain = everything(model, vocabulary(THINGS + STUFF), image)
    words = vocabulary(THINGS + STUFF, label=strange.__getitem__)
    assert_same(everything(model, words, image, back.__getitem__), plain)


def test_synonyms_are_one_category(zero_shot, guided, image):
    """A category is wherever one of its synonyms would be, were they categories themselves.

    Up to pixels between cells: the maximum over synonyms is taken before the interpolation.
    """
    names = ["red star", "blue ring", "green ball", "grass"]
    for model in (zero_shot, guided):
        model.set_vocabulary(names)
        alone = model.predict(image).semantic
        model.set_vocabulary([["red star", "green ball"], "blue ring", "grass"])
        merged = torch.tensor([0, 1, 0, 2])[alone]
        found = model.predict(image).semantic
        assert (found != merged).float().mean() < 0.005 and len(merged.unique()) > 1
