import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def tool(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("tools/make_class_lists.py")


def test_regenerated_files_equal_the_committed_ones(tool: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("detectron2")
    assert tool.main(["--out", str(tmp_path)]) == 0
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    names = ("coco_panoptic", "lvis_v1", "ade20k_150", "cityscapes_19", "voc_20")
    assert set(written) == {f"{name}.json" for name in names}
    resources = files("densedet.vocabulary") / "resources"
    assert written == {name: (resources / name).read_bytes() for name in written}


def test_without_detectron2_it_says_so_and_writes_nothing(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "detectron2", None)
    out = tmp_path / "out"
    with pytest.raises(tool.InstallationError, match=r"tools/install_detectron2\.py"):
        tool.main(["--out", str(out)])
    assert not out.exists()
