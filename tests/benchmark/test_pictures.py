"""The pictures of the benchmarks: always the same, and about as hard to decode as photographs."""

from pathlib import Path

import numpy as np
from PIL import Image

from densedet.benchmark.pictures import mean_size, write_pictures


def test_the_same_files_every_time(tmp_path):
    first = write_pictures(tmp_path / "a", 2)
    second = write_pictures(tmp_path / "b", 2)
    assert [{**r, "file_name": ""} for r in first] == [
        {"file_name": "", "image_id": i, "height": 480, "width": 640} for i in range(2)
    ]
    contents = [
        [Path(record["file_name"]).read_bytes() for record in records]
        for records in (first, second)
    ]
    assert contents[0] == contents[1] and contents[0][0] != contents[0][1]


def test_they_are_like_photographs(tmp_path):
    records = write_pictures(tmp_path, 2)
    assert 80_000 < mean_size(records) < 200_000  # COCO: about 160 kB
    pixels = np.asarray(Image.open(records[0]["file_name"]))
    assert pixels.shape == (480, 640, 3) and 35 < pixels.std() < 60


def test_odd_sizes(tmp_path):
    records = write_pictures(tmp_path, 1, 33, 21)
    assert Image.open(records[0]["file_name"]).size == (21, 33)
