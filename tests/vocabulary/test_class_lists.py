from collections import Counter
from importlib import import_module

import pytest

from densedet.errors import VocabularyError
from densedet.vocabulary import CLASS_LISTS, Vocabulary, class_list_ids, shapes_world_words
from densedet.vocabulary.class_lists import unambiguous_names

# CLIPSelf / OVR-CNN: category ids of the 48 base, 17 novel and 15 unused COCO classes.
OV_COCO_NOVEL = (5, 6, 17, 18, 21, 22, 28, 32, 36, 41, 47, 49, 61, 63, 76, 81, 87)
OV_COCO_UNUSED = (10, 11, 13, 14, 37, 39, 40, 43, 46, 58, 64, 67, 77, 88, 89)

# DenseCLIP's prompts where they differ from Detectron2's label, by index.
DENSECLIP_PROMPTS = """
6 road; 8 windowpane; 11 sidewalk; 13 earth; 16 mountain; 22 painting; 34 rock; 35 wardrobe;
37 bathtub; 38 railing; 40 base; 42 column; 43 signboard; 44 chest of drawers; 50 refrigerator;
51 grandstand; 55 case; 56 pool table; 58 screen door; 59 stairway; 61 bridge; 63 blind; 65 toilet;
72 palm; 79 hovel; 86 awning; 87 streetlight; 89 television receiver; 90 airplane; 92 apparel;
94 land; 95 bannister; 96 escalator; 97 ottoman; 99 buffet; 100 poster; 105 conveyer belt;
107 washer; 108 plaything; 109 swimming pool; 111 barrel; 112 basket; 113 waterfall; 116 minibike;
120 food; 121 step; 122 tank; 131 blanket; 133 hood; 138 ashcan; 147 glass
"""


# Name of the list: all categories, unseen ones.
SIZES = {
    "coco": (80, 0),
    "coco_panoptic": (133, 0),
    "coco_stuff_171": (171, 0),
    "lvis_v1": (1203, 0),
    "ov_coco": (65, 17),
    "ov_lvis": (1203, 337),
    "ade20k_150": (150, 0),
    "ade20k_150_denseclip": (150, 0),
    "ade20k_panoptic": (150, 0),
    "cityscapes_19": (19, 0),
    "voc_20": (20, 0),
    "shapes_world": (70, 0),
    "shapes_world_kind": (70, 16),
    "shapes_world_pairs": (70, 16),
    "shapes_world_fold0": (54, 16),
    "shapes_world_fold1": (54, 16),
    "shapes_world_fold2": (54, 16),
}


def test_sizes() -> None:
    vocabularies = {name: Vocabulary.named(name) for name in CLASS_LISTS}
    assert {name: (len(v), v.seen.count(False)) for name, v in vocabularies.items()} == SIZES


@pytest.mark.parametrize("name", CLASS_LISTS)
def test_ids_ascend_one_a_category(name: str) -> None:
    ids = class_list_ids(name)
    assert len(ids) == len(Vocabulary.named(name))
    assert list(ids) == sorted(set(ids))


def test_coco_is_the_things_of_coco_panoptic() -> None:
    coco, panoptic = Vocabulary.named("coco"), Vocabulary.named("coco_panoptic")
    assert coco == panoptic.of_kind("thing")
    assert Counter(panoptic.kinds) == {"thing": 80, "stuff": 53}
    assert coco.labels[0] == "person" and coco.labels[-1] == "toothbrush"
    assert panoptic.labels[80] == "banner" and panoptic.labels[-1] == "rug-merged"
    ids = class_list_ids("coco")
    assert (ids[0], ids[11], ids[-1]) == (1, 13, 90)
    assert class_list_ids("coco_panoptic")[:80] == ids


def test_coco_stuff_is_coco_and_91_kinds_of_stuff() -> None:
    stuff = Vocabulary.named("coco_stuff_171")
    assert stuff.labels[:80] == Vocabulary.named("coco").labels
    assert stuff.kinds == ("thing",) * 80 + ("stuff",) * 91
    assert list(stuff.labels[80:]) == sorted(stuff.labels[80:]), "in the order of the alphabet"
    assert (stuff.labels[80], stuff.labels[-1]) == ("banner", "wood")
    # COCO panoptic has some of these as they are, under the ids 92 to 182 of all 91
    panoptic = zip(
        class_list_ids("coco_panoptic")[80:],
        Vocabulary.named("coco_panoptic", kind="stuff").labels,
        strict=True,
    )
    whole = [(i, label) for i, label in panoptic if not label.endswith(("-merged", "-other"))]
    assert len(whole) == 34
    assert all(stuff.labels[80 + i - 92] == label for i, label in whole)
    assert class_list_ids("coco_stuff_171") == tuple(range(171))


def test_unambiguous_names() -> None:
    labels = ["screen, crt screen", "screen, silver screen", "bag", "bag, purse", "road, Bag, way"]
    assert unambiguous_names(labels) == [
        ("crt screen",),
        ("silver screen",),
        ("bag",),
        ("purse",),
        ("road", "way"),
    ]


def test_ov_coco_split() -> None:
    ids, vocabulary = class_list_ids("ov_coco"), Vocabulary.named("ov_coco")
    assert (
        tuple(i for i, seen in zip(ids, vocabulary.seen, strict=True) if not seen) == OV_COCO_NOVEL
    )
    assert set(ids) == set(class_list_ids("coco")) - set(OV_COCO_UNUSED)
    names = dict(zip(class_list_ids("coco"), Vocabulary.named("coco").labels, strict=True))
    assert vocabulary.labels == tuple(names[i] for i in ids)


def test_lvis_frequency_and_ids() -> None:
    lvis, split = Vocabulary.named("lvis_v1"), Vocabulary.named("ov_lvis")
    assert Counter(c.frequency for c in lvis) == {"f": 405, "c": 461, "r": 337}
    assert class_list_ids("lvis_v1") == class_list_ids("ov_lvis") == tuple(range(1, 1204))
    assert all(c.synonyms == (c.label,) for c in lvis)
    assert lvis.labels[0] == "aerosol_can" and lvis.labels[161] == "bull"
    assert split.with_unseen([]) == lvis
    assert all(c.seen == (c.frequency != "r") for c in split)


def test_ade20k_synonyms_are_the_unambiguous_parts_of_the_label() -> None:
    ade = Vocabulary.named("ade20k_150")
    assert set(ade.kinds) == {"stuff"}
    assert class_list_ids("ade20k_150") == tuple(range(150))
    assert ade.categories[6].label == "road, route"
    assert ade.categories[6].synonyms == ("road", "route")
    assert ade.labels[8] == "window"
    dropped = {
        part
        for category in ade
        for part in category.label.split(", ")
        if part not in category.synonyms
    }
    assert dropped == {"ground", "counter", "screen", "pot", "stool"}
    assert ade.categories[ade.index("counter")].synonyms == ("counter",)
    assert ade.categories[13].synonyms == ("earth",)
    assert ade.categories[94].synonyms == ("land", "soil")


def test_ade20k_denseclip_prompts() -> None:
    overrides = dict(entry.split(maxsplit=1) for entry in DENSECLIP_PROMPTS.strip().split(";"))
    assert len(overrides) == 51
    labels = Vocabulary.named("ade20k_150").labels
    denseclip = Vocabulary.named("ade20k_150_denseclip")
    assert denseclip.labels == labels
    assert denseclip.synonyms == tuple(
        overrides.get(str(i), label) for i, label in enumerate(labels)
    )


def test_ade20k_panoptic_has_100_things() -> None:
    panoptic = Vocabulary.named("ade20k_panoptic")
    assert panoptic.labels == Vocabulary.named("ade20k_150").labels
    assert panoptic.synonyms == Vocabulary.named("ade20k_150").synonyms
    things = panoptic.of_kind("thing").labels
    assert len(things) == 100
    assert things[:4] == ("bed", "window", "cabinet", "person")
    assert things[-3:] == ("glass, drinking glass", "clock", "flag")
    stuff = panoptic.of_kind("stuff").labels
    assert stuff[:3] == ("wall", "building", "sky") and stuff[-1] == "shower"


def test_cityscapes_and_voc() -> None:
    cityscapes = Vocabulary.named("cityscapes_19")
    assert class_list_ids("cityscapes_19")[:4] == (7, 8, 11, 12)
    assert cityscapes.of_kind("thing").labels == (
        *("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    )
    assert cityscapes.kinds[:11] == ("stuff",) * 11
    voc = Vocabulary.named("voc_20")
    assert class_list_ids("voc_20") == tuple(range(1, 21))
    changed = {c.label: c.synonyms for c in voc if c.synonyms != (c.label,)}
    assert changed == {
        "diningtable": ("dining table",),
        "pottedplant": ("potted plant",),
        "tvmonitor": ("tv monitor",),
    }


def test_shapes_world_order_and_kinds() -> None:
    words = shapes_world_words()
    assert words.colours == ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
    assert words.kinds == ("star", "ring", "ball", "plus", "dice", "heart", "kite", "cone")
    world = Vocabulary.named("shapes_world")
    things = tuple(f"{colour} {kind}" for colour in words.colours for kind in words.kinds)
    assert world.labels == (*things, "sky", "grass", "sand", "brick", "water", "wood")
    assert world.kinds == ("thing",) * 64 + ("stuff",) * 6


def test_shapes_world_splits() -> None:
    kind, pairs = Vocabulary.named("shapes_world_kind"), Vocabulary.named("shapes_world_pairs")
    assert kind.labels == pairs.labels == Vocabulary.named("shapes_world").labels
    unseen = [c.label for c in kind if not c.seen]
    assert {label.split()[1] for label in unseen} == {"ball", "kite"}
    # (kind - 3 * colour) mod 8 in {0, 1}: colour 0 has kinds 0 and 1, 1 has 3 and 4, 7 has 5 and 6.
    unseen = [c.label for c in pairs if not c.seen]
    assert unseen[:4] == ["red star", "red ring", "orange plus", "orange dice"]
    assert unseen[-2:] == ["white heart", "white kite"]
    assert set(Counter(label.split()[0] for label in unseen).values()) == {2}
    assert set(Counter(label.split()[1] for label in unseen).values()) == {2}


@pytest.mark.parametrize("function", [Vocabulary.named, class_list_ids])
def test_unknown_list_names_close_matches_and_choices(function) -> None:
    with pytest.raises(
        VocabularyError, match="'coco_panoptc': did you mean 'coco_panoptic'.*lvis_v1"
    ):
        function("coco_panoptc")
    with pytest.raises(VocabularyError, match="'zzz': the class lists are coco, .*lvis_v1"):
        function("zzz")


def test_labels_are_detectron2s() -> None:
    builtin_meta = pytest.importorskip("detectron2.data.datasets.builtin_meta")
    lvis = import_module("detectron2.data.datasets.lvis_v1_categories").LVIS_CATEGORIES
    coco = builtin_meta.COCO_CATEGORIES
    assert Vocabulary.named("coco_panoptic").labels == tuple(c["name"] for c in coco)
    assert Vocabulary.named("lvis_v1") == Vocabulary.from_coco({"categories": lvis})
    ade = tuple(name.strip() for name in builtin_meta.ADE20K_SEM_SEG_CATEGORIES)
    assert Vocabulary.named("ade20k_150").labels == ade
    things = [c["id"] for c in coco if c["isthing"]]
    assert class_list_ids("coco") == tuple(things)


def test_folds_of_the_shapes_world_hold_back_each_seen_kind_once():
    kind = Vocabulary.named("shapes_world_kind", kind="thing")
    seen = {category.label for category in kind if category.seen}
    held_back = []
    for number in range(3):
        fold = Vocabulary.named(f"shapes_world_fold{number}", kind="thing")
        assert set(fold.labels) == seen
        held_back += [category.label for category in fold if not category.seen]
    assert sorted(held_back) == sorted(seen)
