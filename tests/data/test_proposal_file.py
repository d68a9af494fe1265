"""Reading proposal files: the formats, and pickles that are more than data."""

import json
import os
import pickle
import re
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import BoxMode

from densedet.data import proposal_pickle, read_proposal_file
from densedet.errors import DatasetError

BOXES = [
    np.array([[1, 2, 30, 40], [5, 6, 7, 8.5], [0, 0, 9, 9]], dtype=np.float32),
    np.zeros((0, 4), dtype=np.float32),
]
SCORES = [np.array([-0.5, 2.0, 0.25], dtype=np.float32), np.zeros(0, dtype=np.float32)]


def content(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {"ids": [7, 9], "boxes": BOXES, "objectness_logits": SCORES}
    return {**data, "bbox_mode": BoxMode.XYXY_ABS, **changes}


@pytest.fixture
def write(tmp_path):
    """Write a pickle (of any object, or of bytes as they are) and return its path."""

    def write_pickle(data: Any, protocol: int = 4) -> Path:
        path = tmp_path / "proposals.pkl"
        path.write_bytes(data if isinstance(data, bytes) else pickle.dumps(data, protocol))
        return path

    return write_pickle


@pytest.mark.parametrize("protocol", range(6))
def test_pickle_reads_as_detectron2_reads_it(write, protocol):
    path = write(content(), protocol)
    found = read_proposal_file(path)
    expected = load_proposals_into_dataset([{"image_id": 7}, {"image_id": 9}], str(path))
    assert list(found) == ["7", "9"]
    for record in expected:
        proposals = found[str(record["image_id"])]
        assert np.array_equal(proposals.boxes, record["proposal_boxes"])
        assert np.array_equal(proposals.scores, record["proposal_objectness_logits"])
        assert proposals.boxes.dtype == np.float32
    assert found["7"].scores.tolist() == [2.0, 0.25, -0.5]


def test_box_modes(write):
    found = read_proposal_file(write(content(bbox_mode=BoxMode.XYWH_ABS)))
    assert found["7"].boxes[0].tolist() == [5, 6, 12, 14.5]
    without = content()
    del without["bbox_mode"]
    assert read_proposal_file(write(without))["7"].boxes[0].tolist() == [5, 6, 7, 8.5]
    with pytest.raises(DatasetError, match="has bbox_mode 4"):
        read_proposal_file(write(content(bbox_mode=BoxMode.XYWHA_ABS)))


def test_keys_of_old_files(write):
    data = {"indexes": [7, 9], "boxes": BOXES, "scores": SCORES}
    assert read_proposal_file(write(data))["7"].boxes[0].tolist() == [5, 6, 7, 8.5]


def test_ids_in_arrays_and_arrays_of_arrays(write):
    boxes, scores = np.empty(2, dtype=object), np.empty(2, dtype=object)
    boxes[:], scores[:] = BOXES, SCORES
    data = content(ids=np.array([7, 9]), boxes=boxes, objectness_logits=scores)
    assert list(read_proposal_file(write(data))) == ["7", "9"]
    data["ids"] = [np.int64(7), "000009"]
    assert list(read_proposal_file(write(data))) == ["7", "000009"]


def test_big_endian_and_columnwise_arrays(write):
    boxes = np.asfortranarray(BOXES[0].astype(">f8"))
    found = read_proposal_file(write(content(boxes=[boxes, BOXES[1]])))["7"].boxes
    assert found.tolist() == BOXES[0][[1, 2, 0]].tolist()


def test_pickle_of_python_2(write):
    """There, bytes are text in the file."""
    path = write(
        b"(dp0\nS'ids'\np1\n(lp2\nI5\nasS'boxes'\np3\n(lp4\n(lp5\n(lp6\nF1.0\naF2.0\naF3.0\naF4.0\naaasS'scores'\np7\n(lp8\n(lp9\nF0.5\naas."
    )
    assert read_proposal_file(path)["5"].boxes.tolist() == [[1, 2, 3, 4]]


class Evil:
    """Unpickled, it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, Any]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_code(write, tmp_path, protocol):
    target = tmp_path / "made"
    path = write(content(ids=[Evil(os.mkdir, str(target))]), protocol)
    with pytest.raises(
        DatasetError, match=rf"{re.escape(str(path))} asks for \w+.mkdir, and to run"
    ):
        read_proposal_file(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()  # a plain unpickler would have done it


@pytest.mark.parametrize(
    ("data", "asked"),
    [
        (Evil(eval, "1"), r"builtins\.eval"),
        (Evil(getattr, BOXES[0], "tofile"), r"builtins\.getattr of 'tofile'"),
        (Evil(np.load, "x.npy"), r"numpy\S*\.load"),
        (Evil(Path, "x"), r"pathlib\S*\.Path"),
        (b"cnumpy\nndarray.tofile\n.", r"numpy\.ndarray\.tofile"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", r"numpy\.ndarray\.tofile"),
        (b"Pkey\n.", "an object outside the file"),
        (np.array([1 + 2j]), "an array of type 'c16'"),
        (np.array(["text"]), "an array of type 'U4'"),
        (np.zeros(2, dtype=[("a", "f4")]), "an array of type 'V4'"),
    ],
)
def test_only_data_is_read(write, data, asked):
    with pytest.raises(DatasetError, match=f"asks for {asked}, and to run code"):
        read_proposal_file(write(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps(content(), 4)[:-30], "is damaged or no proposal file"),
        (b"", "is damaged or no proposal file"),
        (b"\xff\xd8\xff\xe0", "is damaged or no proposal file"),
        ([1, 2], "holds no dict"),
        ({"ids": [1], "boxes": BOXES[:1]}, "lacks objectness_logits"),
        (content(ids=[7]), "has 1 ids, 2 arrays of boxes and 2 of scores"),
        (content(ids=5), "are no list; give a file of Detectron2"),
        (content(ids=[7, 7]), "has image 7 twice"),
        (content(boxes=[BOXES[0][:, :3], BOXES[1]]), r"has boxes \(3, 3\) and scores \(3,\)"),
        (content(objectness_logits=SCORES[::-1]), r"has boxes \(3, 4\) and scores \(0,\)"),
        (content(boxes=[BOXES[0] * np.nan, BOXES[1]]), "box or score of image 7 that is not fin"),
        (content(ids=[[7], 9]), r"has the image id \[7\]; give numbers or text"),
        (content(bbox_mode=np.array([0, 1])), "has bbox_mode array"),
        (content(boxes=["many", BOXES[1]]), "boxes of image 7 that are no numbers"),
    ],
)
def test_faulty_pickles(write, data, message):
    path = write(data)
    with pytest.raises(DatasetError, match=f"proposal file {re.escape(str(path))} .*{message}"):
        read_proposal_file(path)


def _doubled(times: int, leaf: Any) -> Any:
    """Lists that hold themselves twice: a few bytes a line in a pickle, 2^times items."""
    for _ in range(times):
        leaf = [leaf, leaf]
    return leaf


@pytest.mark.parametrize(
    "data",
    [
        _doubled(40, 1.0),
        content(ids=[_doubled(40, 1), 9]),
        content(boxes=[_doubled(40, 1), BOXES[1]]),
        content(bbox_mode=_doubled(40, 1)),
        content(bbox_mode=tuple(_doubled(40, 1))),
        {"ids": _doubled(12, 1), "boxes": [], "objectness_logits": []},
    ],
)
def test_a_pickle_that_holds_itself_many_times(write, data):
    path = write(data)
    assert path.stat().st_size < 1000
    with pytest.raises(DatasetError, match="holds the same lists over and over, more than") as e:
        read_proposal_file(path)
    assert len(str(e.value)) < 300 + len(str(path))


@pytest.mark.parametrize("name", ["numpy.dtype", "builtins.getattr"])
def test_a_name_that_holds_itself_many_times(write, name):
    module, function = name.split(".")
    arguments = pickle.dumps((BoxMode, _doubled(40, 1))[name == "numpy.dtype" :], 2)[2:-1]
    path = write(f"c{module}\n{function}\n".encode() + arguments + b"R.")
    with pytest.raises(DatasetError, match="asks for .* a list"):
        read_proposal_file(path)


def test_lists_that_are_shared_are_read(write):
    boxes, scores = [[1.0, 2, 3, 4]] * 3, [0.5] * 3
    data = {"ids": [7, 8], "boxes": [boxes] * 2, "objectness_logits": [scores] * 2}
    assert read_proposal_file(write(data))["8"].boxes.tolist() == boxes


@pytest.mark.parametrize("text", ["[" * 200_000, '{"annotations":' * 200_000])
def test_brackets_without_end(tmp_path, text):
    path = tmp_path / "proposals.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match="proposals.json is not valid JSON"):
        read_proposal_file(path)


def test_ids_with_a_point(write, tmp_path):
    path = tmp_path / "proposals.json"
    path.write_text(
        '[{"image_id": 4.0, "bbox": [1, 2, 3, 4]}, {"image_id": 4, "bbox": [0, 0, 1, 1]}]'
    )
    assert {key: len(found.boxes) for key, found in read_proposal_file(path).items()} == {"4": 2}
    assert list(read_proposal_file(write(content(ids=[7.0, np.float64(9)])))) == ["7", "9"]


def test_byte_order_mark(tmp_path):
    path = tmp_path / "proposals.json"
    path.write_text('[{"image_id": 4, "bbox": [1, 2, 3, 4]}]', encoding="utf-8-sig")
    assert read_proposal_file(path)["4"].boxes.tolist() == [[1, 2, 4, 6]]


def test_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "proposals.pkl")
    with pytest.raises(DatasetError, match="cannot be read: a named pipe, not a regular file"):
        read_proposal_file(tmp_path / "proposals.pkl")


def test_coco_formats(tmp_path):
    path = tmp_path / "proposals.json"
    entries = [
        {"image_id": 4, "bbox": [1, 2, 3, 4], "score": 0.25},
        {"image_id": 4, "bbox": [5, 6, 7, 8], "score": 0.5},
        {"image_id": 5, "bbox": [0, 0, 1.5, 1]},
        {"image_id": 5, "bbox": [0, 0, 2, 2], "score": 1.0},
    ]
    for data in (entries, {"annotations": entries}):
        path.write_text(json.dumps(data))
        found = read_proposal_file(path)
        assert found["4"].boxes.tolist() == [[5, 6, 12, 14], [1, 2, 4, 6]]
        assert found["4"].scores.tolist() == [0.5, 0.25]
        # without a score for each box the order is the file's
        assert found["5"].boxes.tolist() == [[0, 0, 1.5, 1], [0, 0, 2, 2]]
        assert found["5"].scores is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"image_id": 4', "is not valid JSON"),
        ('{"images": []}', "has no list 'annotations'"),
        ("[4]", r"has 4; give 'bbox' and 'image_id' \(number or text\)"),
        (
            f'[{{"image_id": 1, "bbox": [1, 2, 3, {10**400}]}}]',
            "boxes of image 1 that are no numbers",
        ),
        ('[{"image_id": 4}]', "has {'image_id': 4}; give 'bbox' and 'image_id'"),
        ('[{"image_id": [1], "bbox": [1, 2, 3, 4]}]', r"'image_id': \[1\].* \(number or text\)"),
        ('[{"image_id": 4.5, "bbox": [1, 2, 3, 4]}]', r"'image_id': 4.5.* \(number or text\)"),
        (
            '[{"image_id": 1, "bbox": [1, 2, 3, 4]}, {"image_id": "1", "bbox": [5, 6, 7, 8]}]',
            "has image 1 as number and as text; write its id one way",
        ),
        ('[{"image_id": 4, "bbox": [1, 2, 3]}]', r"has boxes \(1, 3\)"),
        ('[{"image_id": 4, "bbox": [1, 2, 3, "w"]}]', "boxes of image 4 that are no numbers"),
        ('[{"image_id": 4, "bbox": [1, 2, 3, NaN]}]', "is not finite"),
    ],
)
def test_faulty_json(tmp_path, text, message):
    path = tmp_path / "proposals.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=f"proposal file {re.escape(str(path))} .*{message}"):
        read_proposal_file(path)


def test_missing_file(tmp_path):
    with pytest.raises(DatasetError, match=r"none.pkl does not exist; made by the RPN"):
        read_proposal_file(tmp_path / "none.pkl", "made by the RPN")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_proposal_file(tmp_path)


@pytest.mark.parametrize("protocol", [2, 4])
def test_attributes_are_members_of_box_mode_alone(tmp_path, protocol):
    from densedet.data.proposal_pickle import read_pickle

    path = tmp_path / "proposals.pkl"
    for mode in BoxMode:
        path.write_bytes(pickle.dumps(Evil(getattr, BoxMode, mode.name), protocol))
        with path.open("rb") as file:
            assert read_pickle(file, path) == mode.value
    for owner, name in ((BoxMode, "convert"), (np.ndarray, "tofile"), (int, "XYXY_ABS")):
        path.write_bytes(pickle.dumps(Evil(getattr, owner, name), protocol))
        with path.open("rb") as file, pytest.raises(DatasetError, match="to run code from a file"):
            read_pickle(file, path)


def _nested(depth: int) -> bytes:
    """Opcodes of a tuple that holds another one twice, and so on; on the stack of the pickle."""
    return b")" + depth * (b"2" + pickle.TUPLE2)


@pytest.mark.parametrize(
    "keyed",
    [
        b"}" + _nested(28) + b"K\x01s",
        b"}(" + _nested(28) + b"K\x01u",
        b"(" + _nested(28) + b"K\x01d",
        b"\x8f(" + _nested(28) + b"\x90",
        b"(" + _nested(28) + b"\x91",
        b"ccollections\nOrderedDict\n(]" + _nested(28) + b"K\x01\x86atR",
        b"ccollections\nOrderedDict\n)R" + _nested(28) + b"K\x01s",
    ],
    ids=["setitem", "setitems", "dict", "set", "frozenset", "ordered arguments", "ordered"],
)
def test_keys_whose_hash_would_take_for_ever_are_refused(write, keyed):
    started = time.process_time()
    with pytest.raises(DatasetError, match=r"proposals\.pkl is damaged or no proposal file"):
        read_proposal_file(write(b"\x80\x04" + keyed + b"."))
    assert time.process_time() - started < 2


def test_small_and_large_files_read_the_same(write, monkeypatch):
    path = write(content(note={(1, 2): OrderedDict(a=(1, (2, 3)))}))
    small = read_proposal_file(path)
    monkeypatch.setattr(proposal_pickle, "_SMALL", 0)
    large = read_proposal_file(path)
    assert small.keys() == large.keys() and len(small) == 2
    for image_id, found in small.items():
        for a, b in zip(found, large[image_id], strict=True):
            np.testing.assert_array_equal(a, b)
