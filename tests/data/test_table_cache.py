"""One copy of an annotation file for the processes of a machine."""

import json
import logging
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.utils import comm

from densedet.data import annotation_reader, table_cache
from densedet.data.annotation_reader import read_table
from densedet.data.table_cache import annotation_table, load_table, save_table
from densedet.errors import DatasetError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DENSEDET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "records"


def _same(first: Any, second: Any) -> bool:
    pairs = zip(first.arrays(), second.arrays(), strict=True)
    return first.categories == second.categories and all(
        a[0] == b[0] and np.array_equal(a[1], b[1], equal_nan=a[1].dtype.kind == "f")
        for a, b in pairs
    )


@pytest.mark.parametrize("text_ids", [False, True])
def test_what_is_written_is_read(
    text_ids: bool, tiny: dict[str, Any], write: Callable[..., Path], tmp_path: Path
) -> None:
    if text_ids:
        for entry in (*tiny["images"], *tiny["categories"]):
            entry["id"] = f"{entry['id']} \u00fc"
        for entry in tiny["annotations"]:
            for key in ("image_id", "category_id"):
                entry[key] = f"{entry[key]} \u00fc"
    table = read_table(write(tiny))
    save_table(tmp_path / "table", table)
    again = load_table(tmp_path / "table", table.path)
    assert again is not None and _same(again, table)
    assert again.coco_data() == table.coco_data()


def test_one_process_writes_nothing(
    tiny: dict[str, Any], write: Callable[..., Path], cache: Path
) -> None:
    path = write(tiny)
    assert annotation_table(path) is annotation_table(str(path))
    assert not cache.exists()


def test_damage_is_seen(
    tiny: dict[str, Any],
    write: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = read_table(write(tiny))
    folder = tmp_path / "table"
    save_table(folder, table)
    assert load_table(tmp_path / "none", table.path) is None and not caplog.text
    for file in sorted(folder.iterdir()):
        good = file.read_bytes()
        for bad in (good[:-1], bytes([good[0] ^ 1]) + good[1:], good[:-1] + bytes([good[-1] ^ 1])):
            if file.suffix == ".npy" and table_of_size(good) == 0 and len(bad) == len(good):
                continue  # the last byte of a header is white space
            file.write_bytes(bad)
            with caplog.at_level(logging.WARNING, "densedet"):
                assert load_table(folder, table.path) is None, file
        file.write_bytes(good)
    assert load_table(folder, table.path) is not None


def table_of_size(content: bytes) -> int:
    """Bytes of numbers in a ``.npy`` file."""
    return len(content) - 10 - int.from_bytes(content[8:10], "little")


def _read(path: Path, queue: Any, start: Any) -> None:
    """A rank of several: what it reads, and whether it decoded the file itself."""
    reads = []
    decode = annotation_reader.read_annotation_file
    annotation_reader.read_annotation_file = lambda *a: reads.append(a) or decode(*a)
    comm.get_world_size = lambda: 3
    table_cache.comm.get_world_size = comm.get_world_size
    start.wait()
    try:
        table = annotation_table(path)
        queue.put((len(reads), table.coco_data(), isinstance(table.boxes, np.memmap)))
        start.wait()  # the one that wrote removes the copy at its end
    except DatasetError as error:
        queue.put((len(reads), str(error), False))


def _in_three_processes(path: Path) -> list[Any]:
    context = multiprocessing.get_context("fork")
    queue, start = context.Queue(), context.Barrier(3)
    processes = [context.Process(target=_read, args=(path, queue, start)) for _ in range(3)]
    for process in processes:
        process.start()
    try:
        return [queue.get(timeout=60) for _ in processes]
    finally:
        for process in processes:
            process.join(60)
            process.kill()


def test_of_several_processes_one_decodes_the_file(
    tiny: dict[str, Any],
    write: Callable[..., Path],
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table_cache, "_MAPPED", 0)
    tiny["annotations"][0]["segmentation"] = [[5.0, 6, 25, 6, 25, 16, 5, 16] * 50]
    path = write(tiny)
    expected = read_table(path).coco_data()
    found = _in_three_processes(path)
    assert sorted(reads for reads, *_ in found) == [0, 0, 1]
    assert all(data == expected and mapped for _, data, mapped in found)
    assert list(cache.glob("*/*")) == [], "removed at the end"


def test_a_faulty_file_is_refused_by_each_of_them(
    tiny: dict[str, Any], write: Callable[..., Path], cache: Path
) -> None:
    tiny["annotations"][0]["bbox"] = ["x"]
    found = _in_three_processes(write(tiny))
    assert [reads for reads, *_ in found] == [1, 1, 1]
    assert all("give four numbers" in message for _, message, _ in found)


def test_a_cache_that_cannot_be_written_is_not_needed(
    tiny: dict[str, Any],
    write: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DENSEDET_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(table_cache.comm, "get_world_size", lambda: 2)
    with caplog.at_level(logging.WARNING, "densedet"):
        table = annotation_table(write(tiny))
    assert len(table.boxes) == 3 and "each process reads" in caplog.text
    monkeypatch.setenv("DENSEDET_CACHE", "")
    path = write(json.loads(json.dumps(tiny)), "other.json")
    assert len(annotation_table(path).boxes) == 3
