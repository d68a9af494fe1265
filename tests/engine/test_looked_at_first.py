"""Files of a user's own data set: what training needs, and what is seen before its first step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from densedet import compat
from densedet.data import annotation_file
from densedet.engine import testing
from densedet.engine.config import load_config
from densedet.engine.train import evaluate, train
from densedet.errors import DatasetError, ImageError

CONFIG = Path(__file__).parents[2] / "projects/fvit/configs/custom_tiny.py"
_EXIF_ORIENTATION = 0x0112


def _content() -> dict[str, Any]:
    boxes = [(image, category) for image in (1, 2) for category in (1, 2)]
    return {
        "images": [{"id": i, "width": 160, "height": 120, "file_name": f"{i}.jpg"} for i in (1, 2)],
        "annotations": [
            {"id": i, "image_id": im, "category_id": c, "bbox": [10 + 50 * (c - 1), 10, 40, 40]}
            for i, (im, c) in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "red star"}, {"id": 2, "name": "blue ring"}],
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., None]:
    """Write the two files and their images, turned by an EXIF tag if wanted."""

    def write_parts(orientation: int = 1, encoding: str = "utf-8", **parts: dict[str, Any]) -> None:
        rng = np.random.default_rng(0)
        for part, data in parts.items():
            (tmp_path / part).mkdir(exist_ok=True)
            for entry in data["images"]:
                pixels = rng.integers(0, 256, (120, 160, 3), dtype=np.uint8)
                image = Image.fromarray(pixels)
                exif = image.getexif()
                exif[_EXIF_ORIENTATION] = orientation
                image.save(
                    tmp_path / part / Path(entry["file_name"].replace("\\", "/")).name, exif=exif
                )
            (tmp_path / f"{part}.json").write_bytes(json.dumps(data).encode(encoding))

    return write_parts


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Any]:
    """Load the config of a user's own data set, on the CLIP that ships with densedet."""
    compat.apply()

    def load_with(*overrides: str) -> Any:
        return load_config(
            CONFIG,
            [
                f"custom.root={tmp_path}",
                f"train.output_dir={tmp_path}/out",
                "clip.pretrained=shipped",
                "dataloader.train.total_batch_size=2",
                "train.max_iter=1",
                "train.eval_period=0",
                *overrides,
            ],
        )

    return load_with


def test_dirty_files_train_and_are_evaluated_and_are_decoded_once(
    write: Callable[..., None], load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cases 01, 02, 06, 08 and 10 at once."""
    training, val = _content(), _content()
    for annotation in training["annotations"]:
        annotation["segmentation"] = [annotation["bbox"]]
        annotation["category_id"] = str(annotation["category_id"])
    for image in val["images"]:
        image.update(file_name="..\\val\\" + image["file_name"], id=float(image["id"]))
    for annotation in val["annotations"]:
        annotation.update(segmentation=[[]], bbox=[f"{v}.5" for v in annotation["bbox"]], area=None)
    write(orientation=6, encoding="utf-8-sig", train=training, val=val)
    reads: list[bytes] = []
    decode = annotation_file._decode
    monkeypatch.setattr(annotation_file, "_decode", lambda c: reads.append(c) or decode(c))
    with pytest.raises(
        DatasetError, match=r"val/\.\./val/1\.jpg .* set apply_exif=False in the map"
    ):
        train(load())
    stored = [f"dataloader.{part}.mapper.apply_exif=False" for part in ("train", "test")]
    results = train(load(*stored))
    assert results["bbox"]["AP"] >= 0
    assert len(reads) == 2, "vocabulary, records and ground truth"


def _change(data: dict[str, Any], key: str, number: int, **values: Any) -> dict[str, Any]:
    data[key][number].update(values)
    return data


FAULTS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "category": (
        _change(_content(), "categories", 1, name="green dot"),
        DatasetError,
        r"val\.json: annotation 1 .* has category 'green dot', which is not in the vocabulary",
    ),
    "box": (
        _change(_content(), "annotations", 3, bbox=[1, 2, "three", 4]),
        DatasetError,
        r"val\.json: annotation 3 of image 2 has box .* give four numbers",
    ),
    "size": (
        _change(_content(), "images", 1, width=170),
        DatasetError,
        r"2\.jpg is 160x120 pixels .* says 170x120",
    ),
    "image": (
        _change(_content(), "images", 0, file_name="sub/1.jpg"),
        ImageError,
        r"sub/1\.jpg does not exist",
    ),
}


@pytest.mark.parametrize("place", ["test", "evaluators"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_evaluated_is_looked_at_before_the_first_step(
    fault: str,
    place: str,
    write: Callable[..., None],
    load: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, kind, message = FAULTS[fault]
    write(train=_content(), val=data)
    monkeypatch.setattr(torch.nn.Module, "__init__", _no_model)
    cfg = load()
    if place == "evaluators":
        cfg.dataloader.evaluators = {
            "other": {key: cfg.dataloader[key] for key in ("image_size", "test", "evaluator")}
        }
        del cfg.dataloader["test"], cfg.dataloader["evaluator"]
        cfg.dataloader.evaluators.other.evaluator.dataset_name = "custom_val"
    with pytest.raises(kind, match=message):
        train(cfg)


def _no_model(*_: Any, **__: Any) -> None:
    raise AssertionError("a model is built before the data is looked at")


def test_evaluation_alone_refuses_a_damaged_file(
    write: Callable[..., None], load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _content()
    data["annotations"][0]["segmentation"] = {"size": [120, 160], "counts": [1200, 40]}
    write(train=_content(), val=data)
    monkeypatch.setattr(testing, "inference_on_dataset", _no_model)
    with pytest.raises(DatasetError, match=r"val\.json: annotation 0 .* add up to 1,240 pixels"):
        evaluate(load())
