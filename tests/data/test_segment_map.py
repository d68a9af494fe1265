"""Panoptic PNGs: against panopticapi's own encoding, and what cannot be written or read."""

import numpy as np
import pytest
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image

from densedet.data.segment_map import MAX_ID, read_segment_map, write_segment_map
from densedet.errors import DatasetError, ImageError

IDS = np.array([[0, 1, 255, 256], [65535, 65536, 7, MAX_ID], [3, 2, 1, 1 << 20]])


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32, np.uint64])
def test_equal_to_panopticapi(tmp_path, dtype):
    path = tmp_path / "new folder" / "map.png"
    write_segment_map(path, IDS.astype(dtype))
    assert (rgb2id(np.array(Image.open(path), dtype=np.uint32)) == IDS).all()

    Image.fromarray(id2rgb(IDS)).save(tmp_path / "theirs.png")
    found = read_segment_map(tmp_path / "theirs.png")
    assert found.dtype == np.uint32 and (found == IDS).all()


def test_small_integer_types(tmp_path):
    write_segment_map(tmp_path / "map.png", np.array([[0, 200]], dtype=np.uint8))
    assert read_segment_map(tmp_path / "map.png").tolist() == [[0, 200]]


@pytest.mark.parametrize("wrong", [-1, MAX_ID + 1])
def test_ids_that_do_not_fit(tmp_path, wrong):
    with pytest.raises(DatasetError, match=f"{wrong}.* do not fit .* 0 to 16777215"):
        write_segment_map(tmp_path / "map.png", np.array([[5, wrong]]))
    assert not list(tmp_path.iterdir())


def test_corrupt_file(tmp_path):
    write_segment_map(tmp_path / "map.png", IDS)
    whole = (tmp_path / "map.png").read_bytes()
    (tmp_path / "map.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="map.png"):
        read_segment_map(tmp_path / "map.png")
