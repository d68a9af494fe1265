"""Whether model and data sets number their classes alike."""

import pytest
from detectron2.data import MetadataCatalog
from omegaconf import DictConfig
from torch import nn

from densedet.engine.vocabulary_check import check_vocabulary
from densedet.errors import ConfigError
from densedet.vocabulary import Vocabulary

COLOURS = Vocabulary.parse("red;green;blue")


class Model(nn.Linear):
    """A module with a vocabulary."""

    def __init__(self, vocabulary):
        super().__init__(1, 1)
        self.vocabulary = vocabulary


@pytest.fixture(autouse=True)
def _data_sets() -> None:
    MetadataCatalog.get("checked_colours").vocabulary = COLOURS
    MetadataCatalog.get("checked_bare").thing_classes = ["a"]


def _cfg(names, part="train"):
    loader = {part: {"dataset": {"names": names}}}
    return DictConfig({"dataloader": loader}, flags={"allow_objects": True})


@pytest.mark.parametrize("names", ["checked_colours", ["checked_bare", "checked_colours"]])
@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (Vocabulary.parse("red;blue;green"), "class 1 is 'blue' in the model and 'green' in the"),
        (Vocabulary.parse("red;green"), "class 2 is nothing in the model and 'blue' in the data"),
        (
            COLOURS.with_unseen(["green"]),
            r"class 1 \('green'\) is unseen in the model, seen in",
        ),
    ],
)
def test_another_vocabulary_than_the_training_data_is_refused(names, vocabulary, message):
    start = r"model.vocabulary \(\d classes\) is not that of the data set checked_colours \(3"
    with pytest.raises(ConfigError, match=f"{start}.*in dataloader.train: {message}.*; set model"):
        check_vocabulary(_cfg(names), Model(vocabulary), "train")
    check_vocabulary(_cfg(names), Model(COLOURS), "train")


def test_seen_flags_do_not_matter_for_evaluation():
    cfg = _cfg("checked_colours", "test")
    check_vocabulary(cfg, Model(COLOURS.with_unseen(["green"])), "test")
    with pytest.raises(ConfigError, match="in dataloader.test: class 0 is 'x' in the model"):
        check_vocabulary(cfg, Model(Vocabulary.parse("x")), "test")


def test_kinds_matter_where_segments_are_panoptic():
    metadata = MetadataCatalog.get("checked_panoptic")
    metadata.vocabulary = Vocabulary.parse("cat").with_stuff(Vocabulary.parse("grass"))
    things = Model(Vocabulary.parse("cat;grass"))
    check_vocabulary(_cfg("checked_panoptic"), things, "train")
    metadata.evaluator_type = "coco_panoptic_seg"
    for part in ("train", "test"):
        with pytest.raises(
            ConfigError, match=r"'grass'\) is thing in the model, stuff in the data"
        ):
            check_vocabulary(_cfg("checked_panoptic", part), things, part)


def test_what_has_no_vocabulary_is_not_checked():
    other = Model(Vocabulary.parse("x"))
    for names in ("checked_bare", "checked_nowhere", None, 3):
        check_vocabulary(_cfg(names), other, "train")
    assert "checked_nowhere" not in MetadataCatalog
    check_vocabulary(_cfg("checked_colours"), nn.Linear(1, 1), "train")
    for loader in ({}, {"train": [1]}, {"train": {"dataset": [{"id": 1}]}}, {"train": {}}):
        check_vocabulary(DictConfig({"dataloader": loader}), other, "train")


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_data_set_of_detectron2_has_its_order_in_its_class_names(part):
    cfg = _cfg("coco_2017_val", part)
    coco = Vocabulary.named("coco")
    for same in (coco, coco.with_unseen(["cat"])):
        check_vocabulary(cfg, Model(same), part)
    by_name = Vocabulary.from_names(sorted(coco.labels))
    message = (
        r"\(80 classes\) is not that of the data set coco_2017_val \(80 classes\) in "
        f"dataloader.{part}: class 0 is 'airplane' in the model and 'person' in the data; set"
    )
    with pytest.raises(ConfigError, match=message):
        check_vocabulary(cfg, Model(by_name), part)
    split = Vocabulary.named("ov_coco")  # 65 of them
    with pytest.raises(ConfigError, match=r"class \d+ is '.*' in the model and '.*' in the data"):
        check_vocabulary(cfg, Model(split), part)


@pytest.mark.parametrize(
    ("evaluator", "expected"),
    [("coco", "'thing'"), ("sem_seg", "'stuff'"), ("coco_panoptic_seg", None)],
)
def test_the_class_names_that_are_evaluated_are_compared(evaluator, expected):
    MetadataCatalog.get("checked_both").set(
        thing_classes=["x", "thing"], stuff_classes=["y", "stuff"], evaluator_type=evaluator
    )
    model = Model(Vocabulary.parse("stuff;thing of another name;thing"))
    if expected is None:
        check_vocabulary(_cfg("checked_both"), model, "train")
        return
    with pytest.raises(ConfigError, match=f"class 1 is .* in the model and {expected} in the data"):
        check_vocabulary(_cfg("checked_both"), model, "train")


def test_a_class_of_a_data_set_may_have_another_name():
    MetadataCatalog.get("checked_names").thing_classes = ["Red ", "leaf_green"]
    for text in ("red;green;blue", "scarlet;leaf green"):
        check_vocabulary(_cfg("checked_names"), Model(Vocabulary.parse(text)), "train")
