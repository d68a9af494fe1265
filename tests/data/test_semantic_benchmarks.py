"""COCO-Stuff10k and ADE20K-Full on small files of their layouts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from scipy import io as scipy_io

from densedet.data import (
    ade20k_full_vocabulary,
    register_ade20k_full,
    register_all,
    register_coco_stuff10k,
)
from densedet.data.prepare import prepare_dataset
from densedet.errors import DatasetError, VocabularyError
from densedet.evaluation import OpenVocabularySemanticEvaluator
from densedet.vocabulary import Vocabulary

CONFIGS = Path(__file__).parents[2] / "configs/common/data"
STUFF = "coco/coco_stuff_10k"
FULL = "ADE20K_2021_17_01"
RECORDS = [
    {"name": name, "id": 9 + i, "trainId": i}
    for i, name in enumerate(["wall", "screen, crt screen", "screen, silver screen"])
] + [{"name": f"thing {i}, object {i}", "id": 9 + i, "trainId": i} for i in range(3, 847)]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of the data sets; no file in it yet."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def _write(folder: Path, part: str, labels: np.ndarray, suffix: str) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*labels.shape, 3), dtype=np.uint8)
    official = folder.name == Path(STUFF).name  # its images stay where the archive has them
    images = folder / "images" if official else folder / "images_detectron2" / part
    labels_folder = folder / "annotations_detectron2" / part
    for path, array in ((images / "a.jpg", pixels), (labels_folder / f"a{suffix}", labels)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    if official:
        (folder / "imageLists").mkdir(exist_ok=True)
        (folder / f"imageLists/{part}.txt").write_text("a\n")


def _write_categories(root: Path, records: Any) -> None:
    (root / FULL).mkdir(exist_ok=True)
    (root / FULL / "categories.json").write_text(json.dumps(records))


def _labels(classes: int, ignored: int) -> np.ndarray:
    dtype = np.uint8 if ignored == 255 else np.uint16
    labels = np.random.default_rng(0).integers(0, classes, (80, 100)).astype(dtype)
    labels[:8] = ignored
    labels[8, 0] = classes - 1
    return labels


@pytest.mark.parametrize(
    ("name", "folder", "parts", "classes", "ignored", "suffix"),
    [
        ("coco_stuff10k", STUFF, ("train", "test"), 171, 255, ".png"),
        ("ade20k_full", FULL, ("training", "validation"), 847, 65535, ".tif"),
    ],
)
def test_config_builds(
    root: Path,
    name: str,
    folder: str,
    parts: tuple[str, str],
    classes: int,
    ignored: int,
    suffix: str,
) -> None:
    labels = _labels(classes, ignored)
    for part in parts:
        _write(root / folder, part, labels, suffix)
    _write_categories(root, RECORDS)
    dataloader = LazyConfig.load(str(CONFIGS / f"{name}.py")).dataloader
    assert dataloader.train.total_batch_size == 16
    dataloader.train.update(total_batch_size=2, num_workers=0)
    dataloader.test.num_workers, dataloader.crop_size = 0, 64
    for call in dataloader.register:
        instantiate(call)
    metadata = MetadataCatalog.get(dataloader.train.dataset.names)
    assert (len(metadata.vocabulary), metadata.ignore_label) == (classes, ignored)
    for sample in next(iter(instantiate(dataloader.train))):
        assert sample["image"].shape[1:] == sample["sem_seg"].shape
        found = set(sample["sem_seg"].unique().tolist())
        assert found <= {*range(classes), ignored} and len(found) > 2
    ((sample,),) = list(instantiate(dataloader.test))
    evaluator = instantiate(dataloader.evaluator)
    assert isinstance(evaluator, OpenVocabularySemanticEvaluator)
    truth = evaluator.sem_seg_loading_fn(sample["sem_seg_file_name"])
    assert np.array_equal(truth, labels)


def test_perfect_and_wrong_predictions_are_scored_without_the_ignored(root: Path) -> None:
    import torch

    _write(root / FULL, "validation", np.array([[0, 846], [65535, 5]], dtype=np.uint16), ".tif")
    _write_categories(root, RECORDS)
    register_ade20k_full()
    dataloader = LazyConfig.load(str(CONFIGS / "ade20k_full.py")).dataloader
    evaluator = instantiate(dataloader.evaluator)
    (record,) = DatasetCatalog.get("ade20k_full_sem_seg_val")
    scores = torch.zeros(847, 2, 2)
    for label, y, x in ((0, 0, 0), (846, 0, 1), (7, 1, 0), (6, 1, 1)):
        scores[label, y, x] = 1
    evaluator.process([record], [{"sem_seg": scores}])
    assert evaluator.evaluate()["sem_seg"]["pACC"] == pytest.approx(100 * 2 / 3)


def test_names_and_metadata(root: Path) -> None:
    register_coco_stuff10k()
    register_all(root)  # registers it as well; the same root
    stuff = MetadataCatalog.get("coco_2017_test_stuff_10k_sem_seg")
    assert stuff.vocabulary == Vocabulary.named("coco_stuff_171")
    assert stuff.sem_seg_root == str(root / STUFF / "annotations_detectron2/test")
    _write_categories(root, RECORDS[::-1])
    for _ in range(2):
        register_ade20k_full()
    full = MetadataCatalog.get("ade20k_full_sem_seg_train")
    assert full.stuff_classes[:2] == ["wall", "screen, crt screen"]
    assert full.vocabulary.synonyms[:4] == ("wall", "crt screen", "silver screen", "thing 3")
    assert full.vocabulary == ade20k_full_vocabulary(root)
    assert full.image_root == str(root / FULL / "images_detectron2/training")


def test_missing_folders_say_what_is_to_do(root: Path) -> None:
    register_coco_stuff10k()
    with pytest.raises(DatasetError, match=r"images does not .*cocostuff-10k-v1\.0"):
        DatasetCatalog.get("coco_2017_train_stuff_10k_sem_seg")
    with pytest.raises(DatasetError, match=r"categories\.json does not exist; densedet does"):
        register_ade20k_full()
    with pytest.raises(DatasetError, match=r"ADE20K-Full .*categories\.json: densedet does not"):
        prepare_dataset("ade20k_full", root)
    _write_categories(root, RECORDS)
    register_ade20k_full()
    with pytest.raises(DatasetError, match=r"does not exist; ADE20K-Full .*prepare_ade20k"):
        DatasetCatalog.get("ade20k_full_sem_seg_val")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ({"a": 1}, "holds no list"),
        (RECORDS[:-1], "has 846 of 847 classes, none with the 'trainId' 846"),
        (
            [*RECORDS, {"name": "more", "trainId": 847}],
            "'trainId': 847}.*not from 0 to 846",
        ),
        ([*RECORDS, {"name": "again", "trainId": 3}], "'again', 'trainId': 3}.* used twice"),
        ([{"trainId": 0}], "{'trainId': 0} has no 'name'"),
        (["wall"], "'wall' has no 'name'"),
        ([{"name": "wall", "trainId": [1]}], "not from 0 to 846"),
    ],
)
def test_lists_of_classes_that_cannot_be(root: Path, records: Any, message: str) -> None:
    _write_categories(root, records)
    with pytest.raises(DatasetError, match=message):
        ade20k_full_vocabulary()


def test_two_classes_of_one_name(root: Path) -> None:
    _write_categories(root, [*RECORDS[:-1], {"name": "wall", "trainId": 846}])
    with pytest.raises(VocabularyError, match="label 'wall' is already used"):
        ade20k_full_vocabulary()


def test_a_list_that_is_cut_off(root: Path) -> None:
    _write_categories(root, RECORDS)
    path = root / FULL / "categories.json"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DatasetError, match=r"categories\.json cannot be read as JSON"):
        ade20k_full_vocabulary(root)


def test_labels_of_version_1_1_are_refused(root: Path) -> None:
    _write(root / STUFF, "test", np.full((4, 6), 180, dtype=np.uint8), ".png")
    register_coco_stuff10k()
    (record,) = DatasetCatalog.get("coco_2017_test_stuff_10k_sem_seg")
    reader = instantiate(
        LazyConfig.load(str(CONFIGS / "coco_stuff10k.py")).dataloader.evaluator.sem_seg_loading_fn
    )
    with pytest.raises(DatasetError, match="label 180, which is none of the 171 classes"):
        reader(record["sem_seg_file_name"])


@pytest.fixture
def stuff(root: Path, save: Callable[..., Path]) -> Path:
    """COCO-Stuff10k as its archive has it: three images, two of them for training."""
    (root / STUFF / "annotations").mkdir(parents=True)
    (root / STUFF / "imageLists").mkdir()
    for name in ("a", "b", "c"):
        save(f"{STUFF}/images/{name}.jpg")
        labels = np.array([[1, 2, 172], [172, 3, 1], [1, 1, 1], [4, 4, 4]], dtype=np.uint16)
        content = {"names": np.array([["unlabeled"], ["person"]], dtype=object), "S": labels}
        scipy_io.savemat(root / STUFF / f"annotations/{name}.mat", content, do_compression=True)
    (root / STUFF / "imageLists/train.txt").write_text("a\nb\n")
    (root / STUFF / "imageLists/test.txt").write_text("c\n")
    return root


def test_coco_stuff10k_from_its_archive(stuff: Path) -> None:
    contents = prepare_dataset("coco_stuff_10k", stuff, any_count=True)
    names = ["coco_2017_train_stuff_10k_sem_seg", "coco_2017_test_stuff_10k_sem_seg"]
    assert {name: c.images for name, c in contents.items()} == {names[0]: 2, names[1]: 1}
    (record,) = DatasetCatalog.get(names[1])
    assert record["file_name"] == str(stuff / STUFF / "images/c.jpg")
    labels = np.asarray(Image.open(record["sem_seg_file_name"]))
    expected = [[255, 0, 170], [170, 1, 255], [255, 255, 255], [2, 2, 2]]
    assert (labels.dtype, labels.tolist()) == (np.uint8, expected)


def test_coco_stuff10k_of_another_version(stuff: Path) -> None:
    labels = np.full((4, 3), 182, dtype=np.uint8)
    scipy_io.savemat(stuff / STUFF / "annotations/b.mat", {"S": labels})
    with pytest.raises(DatasetError, match=r"b\.mat has the label 182, which none of the 171"):
        prepare_dataset("coco_stuff_10k", stuff, any_count=True)
    (stuff / STUFF / "annotations/c.mat").unlink()
    with pytest.raises(DatasetError, match=r"c\.mat does not exist \(1 of 1 are missing\); COCO"):
        prepare_dataset("coco_stuff_10k", stuff, any_count=True)
    assert not list((stuff / STUFF).glob("annotations_detectron2/*"))
