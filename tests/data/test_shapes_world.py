"""Shapes World: what is drawn, what is written, what is registered."""

import json
import shutil

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO

from densedet.data import SemanticMapper
from densedet.data.shapes_world import register_shapes_world
from densedet.data.shapes_world_render import COLOURS, KINDS, STUFF, draw_thing
from densedet.data.shapes_world_scenes import make_pair, make_scene, write_caption
from densedet.data.shapes_world_writer import ShapesWorldRecipe, read_recipe, write_shapes_world
from densedet.errors import DatasetError
from densedet.vocabulary import Vocabulary
from densedet.vocabulary.class_lists import shapes_world_words

RECIPE = ShapesWorldRecipe(train=6, val=3, pairs=5, seed=7)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_shapes_world(folder, RECIPE)
    return folder


def read(root, name):
    return json.loads((root / "shapes_world/annotations" / name).read_text())


def test_the_renderer_knows_the_words_of_the_class_list():
    words = shapes_world_words()
    assert tuple(COLOURS) == tuple(words.colours)
    assert tuple(KINDS) == tuple(words.kinds)
    assert tuple(STUFF) == tuple(words.stuff)


@pytest.mark.parametrize("kind", KINDS)
def test_a_thing_fills_its_radius(kind):
    canvas = np.zeros((101, 101, 3))
    covered = draw_thing(canvas, "red", kind, (50.5, 50.5), 40.0, np.random.default_rng(0))
    rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    assert 60 <= rows[-1] - rows[0] <= 96
    assert 45 <= columns[-1] - columns[0] <= 96
    assert np.all((canvas.sum(-1) > 0)[covered])
    assert canvas[covered][:, 0].mean() > 2 * canvas[covered][:, 1].mean()  # it is red


def test_scenes_depend_on_seed_split_and_index_alone():
    first = make_scene(3, "val", 4)
    make_scene(3, "val", 5)
    again = make_scene(3, "val", 4)
    assert np.array_equal(first.image, again.image) and first.caption == again.caption
    for other in (make_scene(4, "val", 4), make_scene(3, "train", 4), make_scene(3, "val", 5)):
        assert not np.array_equal(first.image, other.image)


def test_regions_of_a_scene_cover_it_once():
    counts = []
    for index in range(30):
        scene = make_scene(0, "train", index)
        assert scene.image.shape == (160, 160, 3) and scene.image.dtype == np.uint8
        masks = [t.mask for t in scene.things] + [mask for _, mask in scene.stuff]
        assert all(mask.any() for mask in masks)
        assert np.array_equal(np.sum(masks, axis=0), np.ones((160, 160)))
        counts.append(len(scene.things))
    assert min(counts) >= 2 and max(counts) <= 8 and 5 < np.mean(counts) < 7


def test_pairs_show_what_their_caption_names():
    captions = [make_pair(0, i)[1] for i in range(200)]
    names = [f"{c} {k}" for c in COLOURS for k in KINDS]
    mentioned = [sum(caption.count(name) for name in names) for caption in captions]
    assert set(mentioned) == {0, 1, 2, 3}
    assert 0.5 < np.mean(np.array(mentioned) == 1) < 0.75
    assert make_pair(0, 0)[0].shape == (56, 56, 3)


def test_a_caption_names_everything():
    rng = np.random.default_rng(0)
    for _ in range(20):
        caption = write_caption(["red star", "blue ring"], ["grass"], rng)
        assert "red star" in caption and "blue ring" in caption
    assert "sky" in write_caption([], ["sky"], rng)


def test_files_are_bit_identical_between_runs(root, tmp_path):
    write_shapes_world(tmp_path, RECIPE)
    files = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert all((root / f).read_bytes() == (tmp_path / f).read_bytes() for f in files)


def test_instances_are_coco(root):
    coco = COCO(str(root / "shapes_world/annotations/instances_train.json"))
    assert len(coco.imgs) == 6 and len(coco.cats) == 64
    for annotation in coco.dataset["annotations"]:
        mask = coco.annToMask(annotation)
        assert mask.sum() == annotation["area"]
        assert mask_util.toBbox(annotation["segmentation"]).tolist() == annotation["bbox"]


def test_panoptic_semantic_and_instances_agree(root):
    panoptic = read(root, "panoptic_val.json")
    instances = read(root, "instances_val.json")["annotations"]
    folder = root / "shapes_world"
    things = {c["id"] for c in panoptic["categories"] if c["isthing"]}
    assert len(panoptic["categories"]) == 70 and len(things) == 64
    for annotation in panoptic["annotations"]:
        pixels = np.array(Image.open(folder / "panoptic_val" / annotation["file_name"]))
        ids = pixels.astype(int) @ [1, 256, 65536]
        semantic = np.array(Image.open(folder / "semantic_val" / annotation["file_name"]))
        assert set(np.unique(ids)) == {s["id"] for s in annotation["segments_info"]}
        for segment in annotation["segments_info"]:
            inside = ids == segment["id"]
            assert inside.sum() == segment["area"]
            assert set(np.unique(semantic[inside])) == {segment["category_id"] - 1}
        own = [a for a in instances if a["image_id"] == annotation["image_id"]]
        drawn = [s for s in annotation["segments_info"] if s["category_id"] in things]
        assert [(a["category_id"], a["area"], a["bbox"]) for a in own] == [
            (s["category_id"], s["area"], s["bbox"]) for s in drawn
        ]


def test_stuff_maps_are_the_semantic_maps_without_things(root):
    folder = root / "shapes_world"
    world = Vocabulary.named("shapes_world")
    stuff, seen = world.of_kind("stuff"), set()
    for part, count in (("train", 6), ("val", 3)):
        for index in range(count):
            maps = [
                np.array(Image.open(folder / f"{kind}_{part}/{index:06d}.png"))
                for kind in ("semantic", "stuff")
            ]
            for label in np.unique(maps[0]):
                category = world.categories[label]
                expected = stuff.index(category.label) if category.kind == "stuff" else 255
                assert set(np.unique(maps[1][maps[0] == label])) == {expected}
                seen.add(expected)
    assert {255} < seen <= {*range(6), 255}


def test_panopticapi_reads_the_panoptic_files(root):
    from panopticapi.evaluation import pq_compute

    folder = root / "shapes_world"
    truth = folder / "annotations/panoptic_val.json"
    pictures = str(folder / "panoptic_val")
    result = pq_compute(str(truth), str(truth), pictures, pictures)
    assert result["All"]["pq"] == 1.0 and result["Things"]["n"] > 0 and result["Stuff"]["n"] > 0


def test_captions_and_pairs(root):
    captions = read(root, "captions_train.json")
    assert [a["image_id"] for a in captions["annotations"]] == [i["id"] for i in captions["images"]]
    pairs = read(root, "captions_pairs.json")
    assert len(pairs["annotations"]) == 5
    for image in pairs["images"]:
        with Image.open(root / "shapes_world/pairs" / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"]) == (56, 56)


def test_a_complete_data_set_is_used_again_and_another_is_not_overwritten(root):
    marker = root / "shapes_world/manifest.json"
    before = marker.stat().st_mtime_ns
    write_shapes_world(root, RECIPE)
    assert marker.stat().st_mtime_ns == before and read_recipe(root) == RECIPE
    with pytest.raises(DatasetError, match="holds another data set.*--force"):
        write_shapes_world(root, ShapesWorldRecipe(train=1, val=1))


def test_force_replaces(tmp_path):
    small = ShapesWorldRecipe(train=1, val=1)
    write_shapes_world(tmp_path, ShapesWorldRecipe(train=2, val=1))
    write_shapes_world(tmp_path, small, force=True)
    assert read_recipe(tmp_path) == small
    assert [p.name for p in tmp_path.iterdir()] == ["shapes_world"]
    assert len(list((tmp_path / "shapes_world/train").iterdir())) == 1


def test_a_data_set_of_an_older_version_is_written_anew(tmp_path):
    old = ShapesWorldRecipe(train=1, val=1, version=1)
    folder = write_shapes_world(tmp_path, old)
    shutil.rmtree(folder / "stuff_val")
    with pytest.raises(DatasetError, match="holds another data set"):
        write_shapes_world(tmp_path, ShapesWorldRecipe(train=1, val=2))
    write_shapes_world(tmp_path, ShapesWorldRecipe(train=1, val=1))
    assert read_recipe(tmp_path).version == 2
    assert (folder / "stuff_val/000000.png").is_file()


@pytest.mark.parametrize("recipe", [{"train": -1}, {"seed": -1}, {"train": 0, "val": 0}])
def test_bad_recipes_write_nothing(tmp_path, recipe):
    with pytest.raises(DatasetError, match="must not be negative|nothing to write"):
        write_shapes_world(tmp_path, ShapesWorldRecipe(**recipe))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def registered(root):
    before = set(DatasetCatalog)
    register_shapes_world(root)
    register_shapes_world(root)  # a second call changes nothing
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("split", ["kind", "pairs"])
def test_training_shows_unseen_things_without_annotation(registered, split):
    seen = DatasetCatalog.get(f"shapes_world_{split}_train_seen")
    full = DatasetCatalog.get(f"shapes_world_{split}_train")
    vocabulary = MetadataCatalog.get(f"shapes_world_{split}_train").vocabulary
    assert len(vocabulary) == 64 and sum(vocabulary.seen) == 48
    assert [r["file_name"] for r in seen] == [r["file_name"] for r in full]
    for a, b in zip(seen, full, strict=True):
        kept = [x for x in b["annotations"] if vocabulary.seen[x["category_id"]]]
        assert [x["bbox"] for x in a["annotations"]] == [x["bbox"] for x in kept]
    assert sum(len(r["annotations"]) for r in seen) < sum(len(r["annotations"]) for r in full)


def test_the_splits_are_the_documented_ones():
    kind = Vocabulary.named("shapes_world_kind", kind="thing")
    unseen = {c.label.split()[1] for c in kind if not c.seen}
    assert unseen == {"ball", "kite"} and sum(kind.seen) == 48
    pairs = Vocabulary.named("shapes_world_pairs", kind="thing")
    colours, kinds = list(COLOURS), list(KINDS)
    for category in pairs:
        colour, name = category.label.split()
        rule = (kinds.index(name) - 3 * colours.index(colour)) % 8 in {0, 1}
        assert category.seen is not rule


def test_panoptic_and_semantic_are_registered(registered):
    panoptic = DatasetCatalog.get("shapes_world_panoptic_val")
    assert len(panoptic) == 3 and all(r["segments_info"] for r in panoptic)
    semantic = DatasetCatalog.get("shapes_world_semantic_val")
    assert len(semantic) == 3
    assert len(MetadataCatalog.get("shapes_world_semantic_val").stuff_classes) == 70
    assert [r["file_name"] for r in panoptic] == [r["file_name"] for r in semantic]
    stuff = DatasetCatalog.get("shapes_world_stuff_train")
    assert len(stuff) == 6
    assert MetadataCatalog.get("shapes_world_stuff_train").stuff_classes == list(STUFF)
    for record in (semantic[0], stuff[0]):
        classes = 70 if record is semantic[0] else 6
        labels = SemanticMapper(True, [], classes)(record)["sem_seg"]
        assert labels.shape == (160, 160) and 0 <= labels.min() < classes


def test_panoptic_categories_are_those_of_the_vocabulary(registered):
    records = DatasetCatalog.get("shapes_world_panoptic_val")
    metadata = MetadataCatalog.get("shapes_world_panoptic_val")
    vocabulary = Vocabulary.named("shapes_world")
    assert metadata.vocabulary == vocabulary
    assert metadata.thing_classes == metadata.stuff_classes == list(vocabulary.labels)
    things, stuff = (
        getattr(metadata, f"{kind}_dataset_id_to_contiguous_id") for kind in ("thing", "stuff")
    )
    assert {**things, **stuff} == {i + 1: i for i in range(70)} and len(things) == 64
    for record in records:
        for segment in record["segments_info"]:
            thing = vocabulary.kinds[segment["category_id"]] == "thing"
            assert segment["isthing"] is thing


@pytest.fixture
def _nothing_registered():
    """The names may be taken by another test's root."""

    def forget():
        for name in [n for n in set(DatasetCatalog) if n.startswith("shapes_world")]:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)

    forget()
    yield
    forget()


@pytest.mark.usefixtures("_nothing_registered")
@pytest.mark.parametrize("name", ["shapes_world_kind_val", "shapes_world_panoptic_val"])
def test_a_missing_data_set_says_how_to_make_it(tmp_path, name):
    register_shapes_world(tmp_path)
    with pytest.raises(DatasetError, match=r"json does not .*tools/prepare_shapes_world.py --root"):
        DatasetCatalog.get(name)


@pytest.mark.usefixtures("_nothing_registered")
@pytest.mark.parametrize("kind", ["semantic", "stuff"])
def test_missing_label_maps_say_how_to_make_them(tmp_path, kind):
    write_shapes_world(tmp_path, ShapesWorldRecipe(train=1, val=1))
    shutil.rmtree(tmp_path / f"shapes_world/{kind}_val")
    register_shapes_world(tmp_path)
    with pytest.raises(DatasetError, match=rf"{kind}_val does not exist; make it with: .* --root"):
        DatasetCatalog.get(f"shapes_world_{kind}_val")


@pytest.mark.usefixtures("_nothing_registered")
def test_a_missing_segment_map_says_how_to_make_it(tmp_path):
    write_shapes_world(tmp_path, ShapesWorldRecipe(train=1, val=1))
    (tmp_path / "shapes_world/panoptic_val/000000.png").unlink()
    register_shapes_world(tmp_path)
    with pytest.raises(DatasetError, match=r"000000.png of .* not exist; make it with: .* --root"):
        DatasetCatalog.get("shapes_world_panoptic_val")
