"""The command line of tools/prepare_datasets.py."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from densedet.cli import exit_code
from densedet.data.benchmarks import BENCHMARKS

STUFF = "coco/coco_stuff_10k"


@pytest.fixture
def tool(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("tools/prepare_datasets.py")


def test_summary_of_each_split(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / STUFF / "imageLists").mkdir(parents=True)
    for part in ("train", "test"):
        (tmp_path / STUFF / f"imageLists/{part}.txt").write_text("a\n")
        for folder, shape in (("images", (2, 2, 3)), (f"annotations_detectron2/{part}", (2, 2))):
            path = tmp_path / STUFF / folder / "a.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros(shape, dtype=np.uint8)).save(path)
    arguments = ["coco_stuff_10k", "--root", str(tmp_path)]
    assert exit_code(lambda: tool.main([*arguments, "--any-count"])) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines()[1].startswith(
        "coco_2017_test_stuff_10k_sem_seg: 1 images, 4 pixels of 1 classes, 0 ignored; none of "
        "bicycle, car, motorcycle, airplane, bus and 165 more"
    )
    assert "coco_2017_test_stuff_10k_sem_seg: verified: 100%" in captured.err
    assert exit_code(lambda: tool.main(arguments)) == 2
    assert "has 1 images, but the official data set has 9,000" in capsys.readouterr().err


def test_help_names_the_data_sets(tool: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tool.main(["--help"])
    text = capsys.readouterr().out
    assert all(name in text for name in BENCHMARKS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["voc_20"],
            "VOCdevkit/VOC2012/JPEGImages does not exist (nor VOCdevkit/VOC2012/ImageSets/"
            "Segmentation, VOCdevkit/VOC2012/SegmentationClass); PASCAL VOC 2012 (http",
        ),
        (["voc"], "invalid choice: 'voc'"),
        ([], "the following arguments are required: NAME"),
    ],
)
def test_complaints_are_one_line(
    tool: ModuleType,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code(lambda: tool.main([*arguments, "--root", str(tmp_path)])) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and message in text
