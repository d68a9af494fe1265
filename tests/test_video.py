"""Reading and writing films."""

import numpy as np
import pytest

from densedet.errors import ImageError, OutputError
from densedet.video import Film, write_film

GREYS = (0, 60, 120, 180)


def write(path, shape=(61, 80, 3), rate=12.5):
    with write_film(path, rate) as film:
        for grey in GREYS:
            film.add(np.full(shape, grey, np.uint8))


def test_what_is_written_is_read(tmp_path):
    write(tmp_path / "new" / "a.mp4")
    film = Film(tmp_path / "new" / "a.mp4")
    assert (film.rate, film.length, film.name) == (12.5, 4, str(tmp_path / "new" / "a.mp4"))
    frames = list(film)
    assert [f.shape for f in frames] == [(60, 80, 3)] * 4 and frames[0].dtype == np.uint8
    assert [f.mean() for f in frames] == pytest.approx(GREYS, abs=6)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.mp4"]


def test_colours_are_rgb(tmp_path):
    with write_film(tmp_path / "a.mp4", 5) as film:
        film.add(np.full((64, 64, 3), (220, 40, 40), np.uint8))
    red, green, blue = next(iter(Film(tmp_path / "a.mp4")))[20:40, 20:40].reshape(-1, 3).mean(0)
    assert red > 190 and green < 80 and blue < 80


def test_a_film_is_whole_or_absent(tmp_path):
    with pytest.raises(RuntimeError), write_film(tmp_path / "a.mp4", 5) as film:
        film.add(np.zeros((32, 32, 3), np.uint8))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"absent\.mp4 does not exist"):
        Film(tmp_path / "absent.mp4")
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(ImageError, match=r"text\.mp4 cannot be opened"):
        Film(tmp_path / "text.mp4")
    write(tmp_path / "a.mp4")
    film = Film(tmp_path / "a.mp4")
    assert len(list(film)) == 4
    with pytest.raises(ImageError, match="no frame"):
        list(film)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / "file" / "a.mp4")
