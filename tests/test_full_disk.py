"""Every file is whole or absent where the disk is full, and the error names it in one line."""

import gc
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from densedet.cli import exit_code
from densedet.clip import convert, tiny
from densedet.data import (
    register_coco_format,
    register_panoptic_format,
    register_semantic_format,
)
from densedet.data.segment_map import write_segment_map
from densedet.engine import seeds, vocabulary_curves, writers
from densedet.engine.checkpoint import Checkpointer
from densedet.errors import OutputError
from densedet.evaluation import (
    OpenVocabularyLVISEvaluator,
    OpenVocabularyPanopticEvaluator,
    OpenVocabularySemanticEvaluator,
)
from densedet.evaluation.results import write_results
from densedet.files import write_text
from densedet.modeling import denseclip_checkpoint
from densedet.regions import EmbeddingCache
from densedet.vocabulary import Category, Vocabulary
from densedet.weights import write_safetensors, write_torch_file

Writer = tuple[Path, Callable[[], Any]]

WORDS = Vocabulary(tuple(Category(f"thing {i}", kind="stuff") for i in range(30)))
NUMBERS = torch.zeros(100_000)
LIMIT = 100  # bytes


def text(folder: Path) -> Writer:
    return folder / "a.txt", lambda: write_text(folder / "a.txt", "a" * 200)


def region_cache(folder: Path) -> Writer:
    cache = EmbeddingCache(folder, "teacher")
    rectangles, embeddings = torch.arange(400).reshape(100, 4), torch.zeros(100, 8)
    return cache.path("7"), lambda: cache.put("7", rectangles, embeddings)


def tiny_clip(folder: Path) -> Writer:
    model = nn.ModuleDict({"token_embedding": nn.Embedding(100, 8)})
    path = folder / "a.safetensors"
    return path, lambda: tiny.export_tiny_weights(model, range(100), path)


def released_clip(folder: Path) -> Writer:
    weights = convert.ClipWeights("densedet-tiny", {"a": NUMBERS}, convert.Origin())
    return folder / "a.pt", lambda: convert.write_released(folder / "a.pt", weights)


def released_denseclip(folder: Path) -> Writer:
    state = {"sem_seg_head.predictor.bias": NUMBERS}
    path = folder / "a.pth"
    return path, lambda: denseclip_checkpoint.write_released(path, state, WORDS, "these")


def checkpoint(folder: Path) -> Writer:
    checkpointer = Checkpointer(nn.Linear(300, 300), str(folder))
    return folder / "model_final.pth", lambda: checkpointer.save("model_final")


def last_checkpoint(folder: Path) -> Writer:
    checkpointer = Checkpointer(nn.Linear(3, 3), str(folder))
    return folder / "last_checkpoint", lambda: checkpointer.tag_last_checkpoint("a" * 200)


def metrics(folder: Path) -> Writer:
    path = folder / "metrics.json"
    write_text(path, "".join(json.dumps({"iteration": i}) + "\n" for i in range(100)))
    return path, lambda: writers.prepare_metrics(path, 50)


def seed_run(folder: Path) -> Writer:
    overrides = [f"train.seed={i}" for i in range(20)]
    return folder / "seed_run.json", lambda: seeds.run_seed([], folder, "a.py", overrides)


def spread(folder: Path) -> Writer:
    figures = {f"AP{i}": {"mean": 0.5} for i in range(20)}
    return folder / "a.json", lambda: seeds.write_spread(folder / "a.json", [1], figures)


def study_table(folder: Path) -> Writer:
    rows = [{"count": i, "PQ": 50.0} for i in range(50)]
    return folder / "a.csv", lambda: vocabulary_curves.write_table(folder / "a.csv", rows)


def study_curves(folder: Path) -> Writer:
    path, rows = folder / "distractors.png", [{"count": i, "PQ": 50.0} for i in range(5)]
    return path, lambda: vocabulary_curves.write_curves(path, rows, ["PQ"])


def vocabulary(folder: Path) -> Writer:
    return folder / "a.json", lambda: WORDS.save(folder / "a.json")


def results(folder: Path) -> Writer:
    return folder / "a.json", lambda: write_results(folder / "a.json", {"AP": 1.0})


def semantic_evaluation(folder: Path) -> Writer:
    data = folder.parent
    for place in ("images", "labels"):
        (data / place).mkdir()
        Image.new("L", (8, 8)).save(data / place / "1.png")
    register_semantic_format("full_disk", data / "images", data / "labels", WORDS)
    evaluator = OpenVocabularySemanticEvaluator("full_disk", output_dir=folder)
    found = {"sem_seg": torch.zeros(8, 8, dtype=torch.int64)}
    evaluator.process([{"file_name": str(data / "images/1.png")}], [found])
    return folder / "confusion_full_disk.npz", evaluator.evaluate


def panoptic_evaluation(folder: Path) -> Writer:
    data = folder.parent
    segment = {"id": 1, "category_id": 1, "bbox": [0, 0, 8, 8], "area": 64, "iscrowd": 0}
    content = annotated({"file_name": "1.png", "segments_info": [segment]})
    (data / "a.json").write_text(json.dumps(content))
    write_segment_map(data / "1.png", np.ones((8, 8), np.uint8))
    register_panoptic_format("full_disk", data / "a.json", data, data, WORDS)
    evaluator = OpenVocabularyPanopticEvaluator("full_disk", output_dir=folder)
    found = torch.ones(8, 8, dtype=torch.int64), [{"id": 1, "category_id": 0}]
    evaluator.process([{"image_id": 1}], [{"panoptic_seg": found}])
    return folder / "predictions.json", evaluator.evaluate


def lvis_evaluation(folder: Path) -> Writer:
    data = folder.parent
    content = annotated({"id": 1, "category_id": 1, "bbox": [0, 0, 8, 8], "area": 64})
    (data / "a.json").write_text(json.dumps(content))
    register_coco_format("full_disk", data / "a.json", data, WORDS, evaluator_type="lvis")
    evaluator = OpenVocabularyLVISEvaluator("full_disk", output_dir=str(folder))
    found = Instances((8, 8), pred_boxes=Boxes(torch.rand(50, 4)), scores=torch.rand(50))
    found.pred_classes = torch.zeros(50, dtype=torch.int64)
    evaluator.process([{"image_id": 1}], [{"instances": found}])
    return folder / "lvis_instances_results.json", evaluator.evaluate


def annotated(annotation: dict[str, Any]) -> dict[str, Any]:
    """The content of an annotation file with one image and one annotation."""
    image = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    names = [{"id": i, "name": name, "frequency": "f"} for i, name in enumerate(WORDS.labels, 1)]
    return {
        "images": [{"id": 1, "file_name": "1.jpg", "height": 8, "width": 8, **image}],
        "categories": [{**name, "isthing": 0} for name in names],
        "annotations": [{"image_id": 1, **annotation}],
    }


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check(writer: Writer, folder: Path, full_disk: Callable[[int], None], size: int) -> None:
    path, write = writer
    before = contents(folder)
    full_disk(size)
    with pytest.raises(OutputError) as caught:
        write()
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be written: ")
    assert "File too large" in message and "\n" not in message
    gc.collect()  # torch's writer of archives ends the process if it dies without a whole archive
    assert contents(folder) == before


@pytest.mark.parametrize(
    "prepare",
    [
        text,
        region_cache,
        tiny_clip,
        released_clip,
        released_denseclip,
        checkpoint,
        last_checkpoint,
        metrics,
        seed_run,
        spread,
        study_table,
        study_curves,
        vocabulary,
        results,
        semantic_evaluation,
        panoptic_evaluation,
        lvis_evaluation,
    ],
)
def test_a_writer(
    prepare: Callable[[Path], Writer], full_disk: Callable[[int], None], tmp_path: Path
) -> None:
    folder = tmp_path / "output"
    folder.mkdir()
    check(prepare(folder), folder, full_disk, LIMIT)


def test_a_tool(
    load_script: Callable[[str], ModuleType], full_disk: Callable[[int], None], tmp_path: Path
) -> None:
    tool = load_script("tools/make_class_lists.py")
    first = tmp_path / next(iter(tool.render_class_lists()))
    check((first, lambda: tool.main(["--out", str(tmp_path)])), tmp_path, full_disk, LIMIT)


@pytest.mark.parametrize("limit", [0, 500, 1500, 2500, 6000, 12_000])
def test_a_training(
    limit: int,
    load_script: Callable[[str], ModuleType],
    full_disk: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Wherever the disk ends: one line, code 2, no pickle, nothing cut but logs."""
    tool = load_script("tools/lazyconfig_train_net.py")
    config = Path(__file__).parent / "engine/configs/tiny_plain.py"
    options = ["train.hooks=[]", f"dataloader.register.0.root={tmp_path}/data"]
    draw = load_script("tests/engine/configs/tiny_data.py").draw
    (tmp_path / "data").mkdir()
    for number in range(12):
        draw(str(tmp_path / "data"), number)
    options.append(f"train.output_dir={tmp_path}/out")
    full_disk(limit)
    with keeping_process():
        code = exit_code(lambda: tool.main(["--config-file", str(config), *options]))
        gc.collect()
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1, said.err
    assert f"error: {tmp_path}/out/" in errors[0] and "cannot be written: File too" in errors[0]
    assert "Traceback" not in said.err + said.out
    assert said.err.count("log.txt ends here") <= 1
    whole = {"config.yaml", "last_checkpoint", "log.txt", "metrics.json", "results.json"}
    for file in (tmp_path / "out").iterdir():
        assert file.name in whole or file.suffix == ".pth" or file.name.startswith("events."), file
        if file.suffix == ".pth":
            torch.load(file, weights_only=True)
        if file.name == "config.yaml":
            assert LazyConfig.load(str(file)).train.output_dir == f"{tmp_path}/out"


@contextmanager
def keeping_process() -> Iterator[None]:
    """Leave loggers, threads and the hook of threads as they were."""
    threads, hook = torch.get_num_threads(), threading.excepthook
    logs = [logging.getLogger(name) for name in ("densedet", "detectron2", "fvcore")]
    before = [(log, log.level, log.propagate, list(log.handlers)) for log in logs]
    yield
    torch.set_num_threads(threads)
    threading.excepthook = hook
    for log, level, propagate, handlers in before:
        log.setLevel(level)
        log.propagate, log.handlers[:] = propagate, handlers


@pytest.mark.parametrize("write", [write_torch_file, write_safetensors])
@pytest.mark.parametrize("missing", [1, 100, 5_000, 100_000, 500_000, None])
def test_weights_wherever_the_disk_ends(
    missing: int | None,
    write: Callable[..., None],
    full_disk: Callable[[int], None],
    tmp_path: Path,
) -> None:
    content = {str(size): torch.zeros(size) for size in (100_000, *range(50), 50_000)}
    others = () if write is write_torch_file else ({"format": "pt"},)
    write(tmp_path / "whole", content, *others)
    size = (tmp_path / "whole").stat().st_size
    path = tmp_path / "a"
    limit = 0 if missing is None else size - missing
    check((path, lambda: write(path, content, *others)), tmp_path, full_disk, limit)


def test_other_errors_of_torch_are_not_of_the_disk(tmp_path: Path) -> None:
    class Broken:
        def __reduce__(self) -> Any:
            raise RuntimeError("of the model")

    with pytest.raises(RuntimeError, match="of the model"):
        write_torch_file(tmp_path / "a", Broken())
    assert contents(tmp_path) == {}
