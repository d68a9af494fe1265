"""Each mend closes a gap that is really there: the tests fail without it."""

import importlib.util
import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from densedet import compat, doctor

detectron2 = pytest.importorskip("detectron2")


@pytest.fixture
def instances() -> dict[str, Any]:
    """Two images, two classes; the truth of a tiny COCO or LVIS data set."""
    boxes = [(1, 1, [10, 10, 30, 20]), (1, 2, [60, 20, 20, 20]), (2, 1, [5, 40, 40, 40])]
    annotations = []
    for i, (image, category, (x, y, w, h)) in enumerate(boxes, 1):
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotations.append(
            {
                "id": i,
                "image_id": image,
                "category_id": category,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [polygon],
            }
        )
    image = {"width": 100, "height": 100, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    return {
        "info": {},
        "images": [{**image, "id": i, "file_name": f"{i}.jpg"} for i in (1, 2)],
        "annotations": annotations,
        "categories": [
            {"id": 1, "name": "cat", "frequency": "f", "image_count": 2},
            {"id": 2, "name": "dog", "frequency": "r", "image_count": 1},
        ],
    }


@pytest.fixture
def results() -> list[dict[str, Any]]:
    """Detections: one exact, one shifted, one false, one missing."""
    rows = [(1, 1, [10, 10, 30, 20], 0.9), (1, 2, [62, 22, 20, 20], 0.8), (2, 2, [0, 0, 9, 9], 0.7)]
    return [dict(zip(("image_id", "category_id", "bbox", "score"), r, strict=True)) for r in rows]


def _run_lvis(folder: Path, instances: dict[str, Any], results: list[dict[str, Any]]) -> float:
    from lvis import LVIS, LVISEval, LVISResults

    path = folder / "lvis.json"
    path.write_text(json.dumps(instances), encoding="utf-8")
    truth = LVIS(str(path))
    evaluation = LVISEval(truth, LVISResults(truth, results), "bbox")
    evaluation.run()
    return float(evaluation.get_results()["AP50"])


def test_lvis_runs_after_the_mend(monkeypatch, tmp_path, instances, results):
    lvis_eval = pytest.importorskip("lvis.eval")
    monkeypatch.setattr(lvis_eval, "np", np)
    with pytest.raises(AttributeError, match="float"):
        _run_lvis(tmp_path, instances, results)
    assert compat.mend_lvis()
    # cat: one of two found, AP50 = 51 of 101 recall steps; dog: found at IoU 0.68 with first rank.
    assert _run_lvis(tmp_path, instances, results) == pytest.approx((51 / 101 + 1) / 2)
    assert not compat.mend_lvis(), "a second call does nothing"
    assert not hasattr(np, "float"), "numpy itself is untouched"


class _Recorded:
    """A Detectron2 COCOEvaluator with the detections put in."""

    def __init__(self, folder: Path, truth: dict[str, Any], results: list[dict[str, Any]]) -> None:
        from detectron2.data import MetadataCatalog

        self.path = folder / "coco.json"
        self.path.write_text(json.dumps(truth), encoding="utf-8")
        self.name = f"densedet_compat_{folder.name}"
        metadata = MetadataCatalog.get(self.name)
        metadata.set(json_file=str(self.path), thing_classes=["cat", "dog"])
        metadata.set(thing_dataset_id_to_contiguous_id={1: 0, 2: 1})
        self.results = results

    def evaluate(self, use_fast_impl: bool) -> dict[str, float]:
        import torch
        from detectron2.evaluation import COCOEvaluator
        from detectron2.structures import Boxes, Instances

        evaluator = COCOEvaluator(
            self.name, ("bbox", "segm"), distributed=False, use_fast_impl=use_fast_impl
        )
        evaluator.reset()
        for image_id in (1, 2):
            rows = [row for row in self.results if row["image_id"] == image_id]
            boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float32)
            boxes[:, 2:] += boxes[:, :2]
            masks = torch.zeros(len(rows), 100, 100, dtype=torch.bool)
            for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
                mask[y0:y1, x0:x1] = True
            found = Instances((100, 100), pred_boxes=Boxes(boxes), pred_masks=masks)
            found.scores = torch.tensor([row["score"] for row in rows])
            found.pred_classes = torch.tensor([row["category_id"] - 1 for row in rows])
            evaluator.process([{"image_id": image_id}], [{"instances": found}])
        tasks = evaluator.evaluate()
        return {f"{t}/{k}": v for t, values in tasks.items() for k, v in values.items()}


@pytest.fixture
def coco_evaluation(monkeypatch) -> ModuleType:
    """Detectron2's module as it is after a fresh import without compiled operators."""
    pytest.importorskip("faster_coco_eval")
    from detectron2.evaluation import coco_evaluation

    if importlib.util.find_spec("detectron2._C"):
        pytest.skip("Detectron2 has its compiled operators")
    monkeypatch.setattr(coco_evaluation, "COCOeval_opt", coco_evaluation.COCOeval)
    return coco_evaluation


def test_fast_coco_evaluation_equals_pycocotools(coco_evaluation, tmp_path, instances, results):
    recorded = _Recorded(tmp_path, instances, results)
    assert compat.use_fast_coco_evaluation()
    assert coco_evaluation.COCOeval_opt.__name__ == "COCOeval_faster"
    assert not compat.use_fast_coco_evaluation(), "a second call does nothing"
    fast, oracle = recorded.evaluate(True), recorded.evaluate(False)
    assert fast.keys() == oracle.keys()
    assert len(fast) == 16
    for key, expected in oracle.items():
        assert fast[key] == pytest.approx(expected, abs=1e-9, nan_ok=True), key
    assert fast["bbox/AP50"] == pytest.approx(100 * (51 / 101 + 1) / 2)


def test_without_the_mend_detectron2_falls_back(
    coco_evaluation, tmp_path, instances, results, caplog, monkeypatch
):
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    with caplog.at_level(logging.INFO):
        _Recorded(tmp_path, instances, results).evaluate(True)
    assert "Fast COCO eval is not built" in caplog.text


def test_semantic_labels_are_writable(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    path = tmp_path / "labels.png"
    Image.fromarray(labels).save(path)
    loaded = compat.load_sem_seg(str(path), dtype=int)
    assert loaded.dtype == np.dtype(int)
    loaded[0, 0] = 255  # what SemSegEvaluator does with the ignored label
    assert loaded.tolist() == [[255, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert compat.load_sem_seg(path).dtype == np.uint8


def test_the_stock_loader_cannot_read_labels(tmp_path):
    """The gap that ``load_sem_seg`` closes; if this fails, the mend is no longer needed."""
    from detectron2.evaluation.sem_seg_evaluation import load_image_into_numpy_array

    if not doctor._tree(Path(detectron2.__file__).parent).endswith("byte for byte"):
        pytest.skip("another Detectron2")
    if int(np.__version__.partition(".")[0]) < 2:
        pytest.skip("numpy 1")
    Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(tmp_path / "labels.png")
    with pytest.raises(ValueError, match="copy"):
        load_image_into_numpy_array(str(tmp_path / "labels.png"), dtype=int)


def test_sem_seg_evaluator_takes_the_loader(tmp_path):
    import torch
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.evaluation import SemSegEvaluator

    Image.fromarray(np.array([[0, 1], [1, 255]], dtype=np.uint8)).save(tmp_path / "truth.png")
    record = {"file_name": "a.jpg", "sem_seg_file_name": str(tmp_path / "truth.png")}
    name = f"densedet_compat_{tmp_path.name}"
    DatasetCatalog.register(name, lambda: [record])
    try:
        MetadataCatalog.get(name).set(stuff_classes=["a", "b"], ignore_label=255)
        evaluator = SemSegEvaluator(name, distributed=False, sem_seg_loading_fn=compat.load_sem_seg)
        evaluator.reset()
        scores = torch.tensor([[[1.0, 0], [1, 0]], [[0, 1], [0, 1]]])  # predicts [[0, 1], [0, 1]]
        evaluator.process([record], [{"sem_seg": scores}])
        # class 0: 1 of 2 pixels; class 1: 1 of 2 (the ignored pixel does not count)
        assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(50.0)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


# The import system as it is with setuptools 82: the path's finder does not know the name.
WITHOUT_PKG_RESOURCES = """
import importlib.machinery, sys

finder = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *rest: None if name == "pkg_resources" else finder(name, *rest)
)
"""


@pytest.mark.parametrize("mended", [True, False])
def test_model_zoo_without_pkg_resources(mended):
    source = Path(detectron2.__file__).with_name("model_zoo") / "model_zoo.py"
    if "pkg_resources" not in source.read_text(encoding="utf-8"):
        pytest.skip("this Detectron2 does not use pkg_resources")
    code = WITHOUT_PKG_RESOURCES
    if mended:
        code += "from densedet import compat; assert 'lend_pkg_resources' in compat.apply()\n"
        code += "assert 'pkg_resources' not in sys.modules\nassert compat.apply() == ()\n"
    code += "from detectron2 import model_zoo\n"
    code += "print(model_zoo.get_config_file('COCO-Detection/retinanet_R_50_FPN_1x.yaml'))\n"
    root = Path(compat.__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=root, capture_output=True, text=True
    )
    if not mended:
        assert "No module named 'pkg_resources'" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_file()


def test_what_detectron2_uses_of_torch_is_not_warned_of(tmp_path):
    """Each of the three is said to be deprecated by the torch that is known good."""
    uses = {
        "jit": lambda: torch.jit.script(torch.nn.ReLU()),
        "meshgrid": lambda: torch.meshgrid(torch.ones(1), torch.ones(1)),
        "DDP": lambda: torch.nn.parallel.DistributedDataParallel(
            torch.nn.Linear(1, 1), broadcast_buffers=False
        ),
    }
    warned = {}
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    torch.set_warn_always(True)  # some are given once a process
    try:
        for hushed in (False, True):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if hushed:
                    compat.hush_deprecations()
                for name, use in uses.items():
                    del caught[:]
                    use()
                    warned[name, hushed] = [str(warning.message) for warning in caught]
    finally:
        torch.set_warn_always(False)
        torch.distributed.destroy_process_group()
    assert all(warned[name, False] and not warned[name, True] for name in uses), warned


STARTED = """
import sys
from densedet import Predictor
slow = ("torch._dynamo", "torch._inductor", "sympy", "triton", "matplotlib", "tensorboard",
        "gradio", "scipy", "pandas", "hydra")
before = [name for name in slow if name in sys.modules]
import torch
from detectron2.layers import Conv2d, ROIAlign
images = torch.ones(1, 1, 4, 4)
assert Conv2d(1, 1, 1)(images).shape == images.shape
pooled = ROIAlign((2, 2), 1.0, 0)(images, torch.tensor([[0.0, 0, 0, 3, 3]]))
assert pooled.shape == (1, 1, 2, 2)
after = [name for name in ("torch._dynamo", "torch._dynamo.utils") if name in sys.modules]
module = sys.modules["torchvision.ops.roi_align"]
from timm.layers import typing as timm_typing
assert module.is_compile_supported("cpu") in (True, False)  # the real function's answer
assert timm_typing.disable_compiler(abs)(-2) == 2
assert torch.compile(lambda x: x + 1, backend="eager")(images).sum() == 32
assert "torch._dynamo.utils" in sys.modules
assert torch.compiler.disable.__module__ != "densedet.compat"
print(before, after)
"""


def test_a_predictor_needs_no_compiler():
    """Until it is asked for, and what is lent for that time gives way to the real one."""
    root = Path(compat.__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", STARTED], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[] []\n"), done.stderr


def test_what_is_there_is_not_lent():
    import torch._dynamo  # noqa: F401

    assert compat.defer_dynamo() is False
