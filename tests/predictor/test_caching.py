"""What is computed once; several threads on one model."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from densedet.clip import ClipVisual, TextEncoder
from densedet.data.shapes_world_scenes import make_scene
from densedet.predictor import Predictor
from densedet.predictor.images import ImageMemory, T
from densedet.vocabulary import Vocabulary

STUFF = Vocabulary.parse("grass;sky")
VOCABULARIES = [
    Vocabulary.parse(words).with_stuff(STUFF)
    for words in ("red star;blue ring", "teapot;ball,red ball;white cone", "green dice")
]


@pytest.fixture
def encoded(request):
    """Counts the passes of an image tower."""

    def count(predictor):
        visual = next(m for m in predictor.model.modules() if isinstance(m, ClipVisual))
        passes = []
        for name in ("_encode", "_embed_locations"):  # where all ways into a tower meet
            original = getattr(visual, name)

            def counted(images, *rest, original=original):
                passes.append(tuple(images.shape))
                return original(images, *rest)

            setattr(visual, name, counted)
            request.addfinalizer(lambda name=name: delattr(visual, name))
        return passes

    return count


@pytest.fixture
def prompted(monkeypatch):
    """Counts what the text towers embed."""
    texts, encode = [], TextEncoder.encode

    def counted(self, names):
        texts.extend(names)
        return encode(self, names)

    monkeypatch.setattr(TextEncoder, "encode", counted)
    return texts


@pytest.mark.parametrize("name", ["predictor", "panoptic", "zero_shot", "guided"])
def test_other_words_on_a_picture_do_not_encode_it_again(request, name, encoded, image):
    predictor = request.getfixturevalue(name)
    picture = image[:, :152].copy()  # no other test's
    expected = []
    for words in VOCABULARIES:
        predictor.set_vocabulary(words)
        expected.append(predictor.predict_batch([picture])[0])  # which keeps nothing
    passes = encoded(predictor)
    predictor.set_image(picture)
    for words, same in zip(VOCABULARIES, expected, strict=True):
        predictor.set_vocabulary(words)
        assert_equal(predictor.predict(), same)
    once = 2 * 2 if name == "guided" else 1  # windows
    assert len(passes) == once
    predictor.predict(picture.copy())  # the same content
    assert len(passes) == once
    predictor.predict(picture[:, ::-1].copy())
    assert len(passes) == 2 * once


def test_all_questions_about_a_picture_share_one_pass(zero_shot, encoded, image):
    passes = encoded(zero_shot)
    zero_shot.set_image(image[8:].copy())
    zero_shot.set_vocabulary(VOCABULARIES[0])
    zero_shot.predict()
    zero_shot.dense_features()
    zero_shot.region_features(boxes=[[0, 0, 30, 30]])
    zero_shot.similarity("red star")
    assert len(passes) == 1


@pytest.mark.parametrize("name", ["predictor", "panoptic", "zero_shot"])
def test_another_picture_does_not_embed_the_words_again(request, name, prompted, image):
    predictor, own = request.getfixturevalue(name), name.replace("_", " ")
    words = Vocabulary.parse(f"{own} one;{own} two").with_stuff(Vocabulary.parse(f"{own} three"))
    predictor.set_vocabulary(words)
    predictor.predict(image)
    assert sum(own in text for text in prompted) == 3
    predictor.predict(image[::-1].copy())
    predictor.with_vocabulary(VOCABULARIES[0]).predict(image)
    predictor.predict(image[:, ::-1].copy())
    assert sum(own in text for text in prompted) == 3


def assert_equal(found, same):
    for name in ("semantic", "panoptic"):
        one, other = getattr(found, name), getattr(same, name)
        assert (one is None) == (other is None) and (one is None or one.equal(other))
    assert found.labels == same.labels and found.vocabulary.labels == same.vocabulary.labels
    if found.instances is not None:
        assert found.instances.scores.equal(same.instances.scores)


def test_the_last_pictures_are_known_by_their_content(image):
    memory, nothing = ImageMemory(2), T.AugmentationList([])
    first = memory.get(image, nothing)
    assert memory.get(image.copy(), nothing) is first
    second = memory.get(image[::-1], nothing)
    assert second.tensor.equal(first.tensor.flip(1))
    assert memory.get(image, nothing) is first
    third = memory.get(image[:80], nothing)  # the second is the oldest now
    assert memory.get(image, nothing) is first and memory.get(image[:80], nothing) is third
    assert memory.get(image[::-1], nothing) is not second
    # the same bytes in another shape are another picture
    assert memory.get(image.reshape(80, 320, 3), nothing).size == (80, 320)


@pytest.fixture
def _switching():
    """Let threads take turns as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_switching")
def test_threads_with_views_find_what_two_predictors_find(panoptic):
    pictures = [make_scene(0, "val", i).image for i in range(2)]
    expected = {}
    for number, words in enumerate(VOCABULARIES[:2]):
        panoptic.set_vocabulary(words)
        expected[number] = [panoptic.predict_batch([picture])[0] for picture in pictures]
    start = threading.Barrier(2)

    def work(number):
        view = panoptic.with_vocabulary(VOCABULARIES[number])
        start.wait()
        found = []
        for turn in range(6):
            view.set_image(pictures[turn % 2])
            found.append(view.predict())
        return found

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(work, range(2)))
    for number, found in enumerate(results):
        for turn, prediction in enumerate(found):
            assert_equal(prediction, expected[number][turn % 2])
    assert panoptic.vocabulary.labels == VOCABULARIES[1].labels  # no view changed it


@pytest.mark.usefixtures("_switching")
def test_no_prediction_mixes_two_vocabularies(zero_shot, image):
    """One thread changes the words while another predicts: each result is of one vocabulary."""
    expected = {}
    for words in VOCABULARIES:
        zero_shot.set_vocabulary(words)
        expected[words.labels] = zero_shot.predict(image)
    stop = threading.Event()

    def change():
        turn = 0
        while not stop.is_set():
            zero_shot.set_vocabulary(VOCABULARIES[turn % 3])
            turn += 1
        return turn

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        found = [zero_shot.predict(image) for _ in range(12)]
        stop.set()
        assert changing.result() > 3
    for prediction in found:
        assert_equal(prediction, expected[prediction.vocabulary.labels])


def test_nothing_stays_replaced(config, weights, image):
    predictor = Predictor(config, weights, device="cpu")
    embedder = predictor.model.embedder
    before = {k: v.clone() for k, v in predictor.model.state_dict().items()}
    predictor.predict(image)
    assert "forward" not in vars(predictor.model.backbone)
    assert predictor.model.embedder is embedder
    after = predictor.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
