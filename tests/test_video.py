"""Reading and writing videos."""

import logging

import numpy as np
import pytest

from densedet.errors import ImageError, OutputError
from densedet.video import Video, write_video

GREYS = (0, 60, 120, 180)


def write(path, shape=(61, 80, 3), rate=12.5):
    with write_video(path, rate) as video:
        for grey in GREYS:
            video.add(np.full(shape, grey, np.uint8))


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "new" / "a.mp4")
    video = Video(tmp_path / "new" / "a.mp4")
    assert (video.rate, video.length, video.name) == (12.5, 4, str(tmp_path / "new" / "a.mp4"))
    frames = list(video)
    assert [f.shape for f in frames] == [(60, 80, 3)] * 4 and frames[0].dtype == np.uint8
    assert [f.mean() for f in frames] == pytest.approx(GREYS, abs=6)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.mp4"]


def test_colours_are_rgb(tmp_path):
    with write_video(tmp_path / "a.mp4", 5) as video:
        video.add(np.full((64, 64, 3), (220, 40, 40), np.uint8))
    red, green, blue = next(iter(Video(tmp_path / "a.mp4")))[20:40, 20:40].reshape(-1, 3).mean(0)
    assert red > 190 and green < 80 and blue < 80


def test_a_film_is_whole_or_absent(tmp_path):
    with pytest.raises(RuntimeError), write_video(tmp_path / "a.mp4", 5) as video:
        video.add(np.zeros((32, 32, 3), np.uint8))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_film_that_does_not_fit_on_the_disk_is_named(tmp_path, full_disk):
    rng = np.random.default_rng(0)
    message = f"^{tmp_path / 'a.mp4'} cannot be written: not all of its 24 frames are in the file"
    full_disk(20_000)
    with pytest.raises(OutputError, match=message), write_video(tmp_path / "a.mp4", 5) as video:
        for _ in range(24):
            video.add(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([], "a video needs at least one frame"),
        ([(32, 32), (32, 40)], "frame 2 has 40 x 32 pixels, those before 32 x 32"),
        ([(1, 32)], "this OpenCV writes no MP4 of 32 x 0 pixels"),
    ],
)
def test_videos_without_a_frame_or_of_several_sizes_are_refused(tmp_path, sizes, message):
    path = tmp_path / "a.mp4"
    with pytest.raises(OutputError, match=f"^{path}: {message}"), write_video(path, 5) as video:
        for size in sizes:
            video.add(np.zeros((*size, 3), np.uint8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("written", "read"), [(0.5, 25), (1, 1), (29.97, 29.97), (240, 240), (500, 25)]
)
def test_rates_that_cannot_be_meant_are_not_taken(tmp_path, written, read):
    write(tmp_path / "a.mp4", rate=written)
    video = Video(tmp_path / "a.mp4")
    assert video.rate == pytest.approx(read) and len(list(video)) == video.length == 4


@pytest.fixture
def damaged(tmp_path):
    """A video of 24 frames of noise, whose second half is zeros."""
    rng = np.random.default_rng(0)
    with write_video(tmp_path / "damaged.mp4", 5) as video:
        for _ in range(24):
            video.add(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8))
    content = bytearray((tmp_path / "damaged.mp4").read_bytes())
    quarter = content.index(b"moov") // 4
    content[2 * quarter : 4 * quarter - 4] = bytes(2 * quarter - 4)
    (tmp_path / "damaged.mp4").write_bytes(content)
    return tmp_path / "damaged.mp4"


def test_a_film_that_ends_early_is_told(damaged, caplog, tmp_path):
    count = len(list(Video(damaged)))
    assert 0 < count < 24
    assert [r.getMessage() for r in caplog.records] == [f"{damaged} ends after frame {count} of 24"]
    caplog.clear()
    write(tmp_path / "a.mp4")
    assert len(list(Video(tmp_path / "a.mp4"))) == 4
    next(iter(Video(tmp_path / "a.mp4")))  # whoever stops has not met the end
    assert caplog.records == []


def test_decoders_write_nothing_on_stderr(damaged, capfd, caplog, tmp_path):
    caplog.set_level(logging.ERROR)
    list(Video(damaged))
    (tmp_path / "text.mp4").write_text("no video")
    for source in (tmp_path / "text.mp4", 99):
        with pytest.raises(ImageError, match="cannot be opened"):
            Video(source)
    assert capfd.readouterr().err == ""


def test_cameras_are_numbered_from_0():
    for number in (-3, 2**31):
        with pytest.raises(ImageError, match=f"no camera {number}; cameras are numbered from 0"):
            Video(number)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"absent\.mp4 does not exist"):
        Video(tmp_path / "absent.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ImageError, match=r"text\.mp4 cannot be opened"):
        Video(tmp_path / "text.mp4")
    write(tmp_path / "a.mp4")
    video = Video(tmp_path / "a.mp4")
    assert len(list(video)) == 4
    with pytest.raises(ImageError, match="no frame"):
        list(video)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / "file" / "a.mp4")
