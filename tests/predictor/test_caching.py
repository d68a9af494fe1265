"""What is computed once; several threads on one model."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from PIL import Image

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
    texts, embed = [], TextEncoder.embed_names

    def counted(self, names, *rest, **options):
        texts.extend(names)
        return embed(self, names, *rest, **options)

    monkeypatch.setattr(TextEncoder, "embed_names", counted)
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


def test_another_picture_does_not_run_learned_prompts_again(guided, monkeypatch, image):
    runs, encode = [], TextEncoder.encode_shared

    def counted(self, prefix, names, *rest):
        runs.append(len(names))
        return encode(self, prefix, names, *rest)

    monkeypatch.setattr(TextEncoder, "encode_shared", counted)
    guided.set_vocabulary("red teapot;blue teapot;green teapot")
    for picture in (image, image[::-1].copy(), image[:, ::-1].copy()):
        guided.predict(picture)
    assert runs == [3]


def tensors(found):
    """All that a prediction says, by name."""
    maps = {name: getattr(found, name) for name in ("semantic", "confidence", "panoptic")}
    if found.instances is not None:
        fields = found.instances.get_fields()
        maps |= {**fields, "pred_boxes": fields["pred_boxes"].tensor}
    return {name: value for name, value in maps.items() if value is not None}


def assert_equal(found, same):
    assert found.vocabulary.labels == same.vocabulary.labels and found.segments == same.segments
    one, other = tensors(found), tensors(same)
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


def test_predictions_are_compared_whole(panoptic, image):
    panoptic.set_vocabulary(VOCABULARIES[0])
    assert set(tensors(panoptic.predict(image))) == {
        *("semantic", "confidence", "panoptic"),
        *("pred_boxes", "scores", "pred_classes", "pred_masks"),
    }


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
def test_threads_with_views_find_what_two_predictors_find(panoptic, panoptic_source):
    pictures = [make_scene(0, "val", i).image for i in range(2)]
    other, expected = Predictor(*panoptic_source, device="cpu"), {}
    for number, words in enumerate(VOCABULARIES[:2]):
        other.set_vocabulary(words)
        expected[number] = [other.predict(picture) for picture in pictures]
    panoptic.set_vocabulary(VOCABULARIES[2])
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
    assert panoptic.vocabulary.labels == VOCABULARIES[2].labels  # no view changed it


@pytest.mark.usefixtures("_switching")
def test_no_prediction_mixes_two_vocabularies(panoptic, image):
    """One thread changes the words while another predicts: each result is of one vocabulary."""
    expected = {}
    for words in VOCABULARIES:
        panoptic.set_vocabulary(words)
        expected[words.labels] = panoptic.predict(image)
    stop, turns, found = threading.Event(), [], []

    def change():
        while not stop.is_set():
            panoptic.set_vocabulary(VOCABULARIES[len(turns) % 3])
            turns.append(stop)

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        try:
            while len(found) < 12 or (len(turns) < 4 and not changing.done()):
                found.append(panoptic.predict(image))
        finally:
            stop.set()
        changing.result()
    for prediction in found:
        assert_equal(prediction, expected[prediction.vocabulary.labels])


class Interrupting:
    """A path; while it is read, something else is done."""

    def __init__(self, path, action):
        self.path, self.action = path, action

    def __fspath__(self):
        self.action()
        return str(self.path)


def test_words_that_are_set_while_the_picture_is_read_come_too_late(zero_shot, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "a.png")
    zero_shot.set_vocabulary(VOCABULARIES[0])
    path = Interrupting(tmp_path / "a.png", lambda: zero_shot.set_vocabulary(VOCABULARIES[1]))
    assert zero_shot.predict(path).vocabulary.labels == VOCABULARIES[0].labels
    assert zero_shot.predict(image).vocabulary.labels == VOCABULARIES[1].labels


def test_a_picture_that_is_set_while_the_phrase_is_embedded_comes_too_late(
    zero_shot, image, monkeypatch
):
    zero_shot.set_image(image)
    embed = TextEncoder.embed_names

    def interrupted(self, names, *rest, **options):
        zero_shot.set_image(image[:80])
        return embed(self, names, *rest, **options)

    monkeypatch.setattr(TextEncoder, "embed_names", interrupted)
    found = zero_shot.similarity("a phrase that is embedded now")
    assert found.shape == (160, 160) and zero_shot.predict().semantic.shape == (80, 160)


def test_nothing_stays_replaced(config, weights, image):
    predictor = Predictor(config, weights, device="cpu")
    embedder = predictor.model.embedder
    before = {k: v.clone() for k, v in predictor.model.state_dict().items()}
    predictor.predict(image)
    assert "forward" not in vars(predictor.model.backbone)
    assert predictor.model.embedder is embedder
    after = predictor.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
