"""A small part of the table of ``tests/corruption.py``, and that it sees what it should."""

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_SPEC = importlib.util.spec_from_file_location(
    "corruption", Path(__file__).with_name("corruption.py")
)
assert _SPEC is not None and _SPEC.loader is not None
corruption = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = corruption
_SPEC.loader.exec_module(corruption)

# A model is built of each undamaged file: the folders of these kinds are read without, 25 times.
_SLOW = {
    "saved model, config": 2,
    "saved model, weights": 0,
    "saved model, words": 0,
    "saved folder, weights": 8,
}


@pytest.mark.parametrize("name", [n for n in corruption.KINDS if _SLOW.get(n, 1)])
def test_damaged_files_are_refused_or_read_as_the_same(name: str, tmp_path: Path) -> None:
    kind = corruption.KINDS[name]
    table = corruption.corruption_table(kind, tmp_path, _SLOW.get(name, 25), seed=1)
    assert corruption.is_right(kind, table), table
    assert table["empty"] == {"refused": 1}


def _endless(_: Path) -> None:
    while True:
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (lambda data: data, "changed"),
        (lambda data: data[:0], "same"),
        (lambda data: {}[len(data)], "traceback"),
        (_endless, "hangs"),
    ],
)
def test_the_table_sees_every_outcome(
    read: Callable[[bytes], Any], outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corruption, "_SECONDS", 1)
    good = bytes(range(200))

    def write(folder: Path) -> Path:
        (folder / "file").write_bytes(good)
        return folder / "file"

    def read_file(path: Path) -> Any:
        data = path.read_bytes()
        return good[:0] if data == good and outcome != "changed" else read(data)

    kind = corruption.Kind(write, read_file, True)
    count = 0 if outcome == "hangs" else 3
    table = corruption.corruption_table(kind, tmp_path, count, seed=2)
    assert table["empty"] == {outcome: 1}
    assert corruption.is_right(kind, table) is (outcome == "same")


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert corruption.main(["label PNG", "JPEG image", "--count", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * len(corruption.DAMAGES)
    assert lines[1].split() == ["label", "PNG", "one", "bit", "2", "0", "0", "0", "0"]
    with pytest.raises(SystemExit):
        corruption.main(["a poem"])
