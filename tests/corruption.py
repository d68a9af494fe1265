"""The corruption table: kinds of files that densedet reads, times what happens to them.

    python tests/corruption.py [KIND ...] [--count 200] [--seed 0]

Every damaged file must be refused with one message, or read as the same data; where the format has
a checksum, none may be read as other data. Exit code 1 if that does not hold. A kind of file is one
`Kind`: a function that writes a good file, and one that reads it to values that can be compared.
"""

import argparse
import json
import logging
import pickle
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from densedet.clip import VocabularyEmbedder
from densedet.data import load_coco_format, load_panoptic_format, read_proposal_file
from densedet.data.images import read_image, read_label_map
from densedet.data.segment_map import read_segment_map, write_segment_map
from densedet.engine.checkpoint import read_checkpoint
from densedet.engine.config import build, load_config
from densedet.errors import DensedetError
from densedet.saved_model import open_model, save_model
from densedet.saved_model.folder import VOCABULARY, WEIGHTS, read_folder
from densedet.vocabulary import Vocabulary
from densedet.weights import read_safetensors, read_torch_file, write_safetensors, write_torch_file

OUTCOMES = ("refused", "same", "changed", "traceback", "hangs")
Image.init()  # fills Image.SAVE
_SECONDS = 60  # after which a reader counts as hanging
_DETECTOR = "projects/fvit/configs/quickstart.py"


class Kind(NamedTuple):
    """A kind of file.

    Attributes:
        write: writes a good file below a folder and gives its path.
        read: reads that path to values of arrays, tensors, numbers, text and containers.
        has_checksum: whether no damage may be read as other data.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    has_checksum: bool


def _pixels(height: int = 40, width: int = 56) -> np.ndarray:
    """Something smooth with edges, as a photograph."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 3))
    waves = np.stack([4 * x, 5 * y, 120 + 60 * np.sin(x / 5) * (y > 20)], axis=2)
    return np.clip(waves + noise, 0, 255).astype(np.uint8)


def _segments(height: int = 40, width: int = 56) -> np.ndarray:
    """A background and rectangles, as in annotations."""
    ids = np.full((height, width), 1)
    draw = np.random.default_rng(1)
    for number in range(2, 9):
        top, left = draw.integers(0, height - 8), draw.integers(0, width - 8)
        ids[top : top + draw.integers(4, 20), left : left + draw.integers(4, 20)] = number
    return ids


def _image(form: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / f"image.{form.lower()}"
        Image.fromarray(_pixels()).save(path, form)
        return path

    return write


def _labels(folder: Path) -> Path:
    Image.fromarray(_segments().astype(np.uint8)).save(folder / "labels.png")
    return folder / "labels.png"


def _segment_map(folder: Path) -> Path:
    write_segment_map(folder / "segments.png", _segments() * 70_001)
    return folder / "segments.png"


_IMAGES = [{"id": i, "file_name": f"{i}.jpg", "width": 56, "height": 40} for i in (1, 2)]
_CATEGORIES = [{"id": 3, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]
_VOCABULARY = Vocabulary.from_coco({"images": [], "annotations": [], "categories": _CATEGORIES})


def _json(name: str, content: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
        return folder / name

    return write


def _instances() -> dict[str, Any]:
    polygon = [[5.5, 5, 20, 5, 20, 30.25, 5, 30]]
    annotations = [
        {
            "id": i,
            "image_id": 1 + i % 2,
            "category_id": (3, 9)[i % 2],
            "bbox": [5, 5, 15, 25.25],
            "area": 378.0,
            "iscrowd": 0,
            "segmentation": polygon if i else {"size": [40, 56], "counts": [200, 40, 2000]},
        }
        for i in range(4)
    ]
    return {"images": _IMAGES, "categories": _CATEGORIES, "annotations": annotations}


def _panoptic() -> dict[str, Any]:
    segments = [
        {"id": 70_001 * i, "category_id": 3, "bbox": [1, 2, 30, 20], "area": 600, "iscrowd": 0}
        for i in range(1, 9)
    ]
    annotations = [
        {"image_id": image["id"], "file_name": f"{image['id']}.png", "segments_info": segments}
        for image in _IMAGES
    ]
    return {"images": _IMAGES, "categories": _CATEGORIES, "annotations": annotations}


def _proposals(folder: Path) -> Path:
    draw = np.random.default_rng(2)
    boxes = [np.sort(draw.random((20, 4), dtype=np.float32) * 40) for _ in range(4)]
    scores = [draw.random(20, dtype=np.float32) for _ in range(4)]
    content = {"ids": [1, 2, 3, 4], "boxes": boxes, "objectness_logits": scores, "bbox_mode": 0}
    (folder / "proposals.pkl").write_bytes(pickle.dumps(content))
    return folder / "proposals.pkl"


def _weights() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {f"layer{i}.weight": torch.randn(16, 24, generator=draw) for i in range(4)}


def _safetensors(folder: Path) -> Path:
    write_safetensors(folder / "model.safetensors", _weights(), {"made_by": "densedet"})
    return folder / "model.safetensors"


def _pth(folder: Path) -> Path:
    torch.save(_weights(), folder / "model.pth")
    return folder / "model.pth"


def _checkpoint(folder: Path) -> Path:
    optimizer = {"state": {0: {"exp_avg": torch.ones(16, 24)}}, "param_groups": [{"lr": 0.1}]}
    content = {"model": _weights(), "optimizer": optimizer, "iteration": 7}
    write_torch_file(folder / "model_0000007.pth", content)
    return folder / "model_0000007.pth"


def _embedder(folder: Path) -> VocabularyEmbedder:
    return VocabularyEmbedder("densedet-tiny", "shipped", "plain", cache_dir=folder)


def _class_embeddings(folder: Path) -> Path:
    embedder = _embedder(folder)
    embedder(_VOCABULARY)
    path = embedder.cache_path(_VOCABULARY)
    assert path is not None and path.is_file()
    return path


def _read_class_embeddings(path: Path) -> Any:
    found = _embedder(path.parent)(_VOCABULARY)
    return [found.vectors, found.groups, found.background]


def _saved_model(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        config = load_config(_DETECTOR)
        torch.manual_seed(3)
        save_model(build(config.model, "model").eval(), folder / "model", config)
        return folder / "model" / name

    return write


def _read_saved_model(path: Path) -> Any:
    found = open_model(path.parent)
    kept = {key: value for key, value in found.config.items() if key != "files"}
    return [found.model.state_dict(), found.vocabulary.digest(), OmegaConf.to_yaml(kept)]


def _read_saved_parts(path: Path) -> Any:
    """All that is read of a folder before a model is built."""
    content = read_folder(path.parent)
    state, _ = read_safetensors(path.parent / WEIGHTS, check=False)
    parts = {key: content[key] for key in ("model", "augmentations")}
    return [state, Vocabulary.from_file(path.parent / VOCABULARY).digest(), repr(parts)]


KINDS: Mapping[str, Kind] = {
    "JPEG image": Kind(_image("JPEG"), read_image, False),
    "WebP image": Kind(_image("WEBP"), read_image, False),
    "TIFF image": Kind(_image("TIFF"), read_image, False),
    **({"AVIF image": Kind(_image("AVIF"), read_image, False)} if "AVIF" in Image.SAVE else {}),
    "PNG image": Kind(_image("PNG"), read_image, True),
    "label PNG": Kind(_labels, read_label_map, True),
    "panoptic PNG": Kind(_segment_map, read_segment_map, True),
    "annotation JSON": Kind(
        _json("instances.json", _instances()),
        lambda path: list(load_coco_format(path, "images", _VOCABULARY)),
        False,
    ),
    "panoptic JSON": Kind(
        _json("panoptic.json", _panoptic()),
        lambda path: load_panoptic_format(path, "images", "maps", _VOCABULARY),
        False,
    ),
    "proposal pickle": Kind(_proposals, read_proposal_file, False),
    "proposal JSON": Kind(
        _json("proposals.json", [{**a, "score": 0.5} for a in _instances()["annotations"]]),
        read_proposal_file,
        False,
    ),
    "torch .pth": Kind(_pth, read_torch_file, True),
    "safetensors": Kind(_safetensors, lambda path: read_safetensors(path)[0], True),
    "training checkpoint": Kind(_checkpoint, lambda path: read_checkpoint(str(path)), True),
    "class embeddings": Kind(_class_embeddings, _read_class_embeddings, True),
    "saved model, config": Kind(_saved_model("config.yaml"), _read_saved_model, True),
    "saved model, weights": Kind(_saved_model("model.safetensors"), _read_saved_model, True),
    "saved model, words": Kind(_saved_model("vocabulary.json"), _read_saved_model, True),
    "saved folder, config": Kind(_saved_model("config.yaml"), _read_saved_parts, True),
    "saved folder, weights": Kind(_saved_model("model.safetensors"), _read_saved_parts, True),
    "saved folder, words": Kind(_saved_model("vocabulary.json"), _read_saved_parts, True),
}


def damages(good: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """The name and the result of each damage: ``count`` of those at random places."""
    draw = random.Random(seed)
    for _ in range(count):
        data = bytearray(good)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        yield "one bit", bytes(data)
    for _ in range(count):
        yield "cut off", good[: draw.randrange(1, len(good))]
    for filler in (b"\0", b"a line of text\n"):
        for _ in range(count):
            start, size = draw.randrange(len(good)), draw.randrange(1, 80)
            patch = (filler * size)[:size]
            name = "zero bytes" if filler == b"\0" else "text inside"
            yield name, good[:start] + patch + good[start + size :]
    yield "a page instead", b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n" * 20
    yield "empty", b""


DAMAGES = ("one bit", "cut off", "zero bytes", "text inside", "a page instead", "empty")


def corruption_table(kind: Kind, folder: Path, count: int, seed: int) -> dict[str, Counter[str]]:
    """Damage -> how often each of the `OUTCOMES` was."""
    path = kind.write(folder)
    good = path.read_bytes()
    expected = comparable(kind.read(path))
    table: dict[str, Counter[str]] = {name: Counter() for name in DAMAGES}
    for name, data in damages(good, count, seed):
        path.write_bytes(data)
        table[name][_outcome(kind, path, expected)] += 1
    path.write_bytes(good)
    assert comparable(kind.read(path)) == expected, "reading changes the file or the program"
    return table


def _outcome(kind: Kind, path: Path, expected: Any) -> str:
    try:
        with _limited():
            found = comparable(kind.read(path))
    except DensedetError as error:
        first, *others = str(error).splitlines()
        listed = all(line.startswith("- ") for line in others) and len(others) <= 10
        return "refused" if first and listed else "traceback"
    except _Hangs:
        return "hangs"
    except Exception as error:
        logging.getLogger(__name__).warning("%s: %r", path.name, error)
        return "traceback"
    return "same" if found == expected else "changed"


class _Hangs(BaseException):
    """The reader takes too long."""


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise _Hangs

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def comparable(value: Any) -> Any:
    """The value in types of Python that are equal only if all of it is, NaN and -0 included."""
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, Mapping):
        return {key: comparable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    return repr(value)


def is_right(kind: Kind, table: Mapping[str, Counter[str]]) -> bool:
    """Whether nothing ended with a traceback or without an end, or was changed without a word."""
    total: Counter[str] = sum(table.values(), Counter())
    return not total["traceback"] + total["hangs"] + kind.has_checksum * total["changed"]


def main(arguments: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}")
    parser.add_argument("--count", type=int, default=200, help="damages of each random sort")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    wrong = False
    print(f"{'kind of file':22}{'damage':16}" + "".join(f"{name:>11}" for name in OUTCOMES))
    for name in options.kinds or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            table = corruption_table(KINDS[name], Path(folder), options.count, options.seed)
        for damage, found in table.items():
            counts = "".join(f"{found[outcome]:>11}" for outcome in OUTCOMES)
            print(f"{name:22}{damage:16}{counts}", flush=True)
        wrong |= not is_right(KINDS[name], table)
    print("WRONG" if wrong else "nothing is changed without a word where there is a checksum")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
