"""Reading images: equal to Detectron2's reading, and no silent damage."""

import io
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import detection_utils
from PIL import Image, ImageFile

from densedet.data import read_image
from densedet.data.images import image_size, reading
from densedet.errors import ImageError
from densedet.predictor.images import as_pixels


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def _jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def test_png_is_exact_and_writable(pixels: np.ndarray, tmp_path: Path) -> None:
    Image.fromarray(pixels).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png")
    assert image.dtype == np.uint8 and image.shape == (60, 90, 3)
    np.testing.assert_array_equal(image, pixels)
    image[0, 0] = 0


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_other_modes_become_rgb(mode: str, pixels: np.ndarray, tmp_path: Path) -> None:
    source = Image.fromarray(pixels).convert(mode)
    source.save(tmp_path / "x.png")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), np.asarray(source.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, pixels: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    path = tmp_path / "x.jpg"
    Image.fromarray(pixels).save(path, exif=exif, quality=100)
    upright = np.asarray(Image.open(path).convert("RGB"))
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, -1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, 1),
    }[orientation]
    image = read_image(path)
    np.testing.assert_array_equal(image, turned)
    bgr = detection_utils.read_image(str(path), format="BGR")
    np.testing.assert_array_equal(image[..., ::-1], bgr)


def test_missing_image(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg does not exist; check the image folder"):
        read_image(tmp_path / "gone.jpg")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be opened"):
        read_image(tmp_path)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 50])
def test_not_an_image(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "page.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=r"page\.jpg is not an image"):
        read_image(tmp_path / "page.jpg")


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("allowed", [False, True])
def test_truncated_jpeg(
    part: float,
    allowed: bool,
    pixels: np.ndarray,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", allowed)
    data = _jpeg(pixels)
    path = tmp_path / "cut.jpg"
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(ImageError, match=r"cut\.jpg is truncated or corrupt"):
        read_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is allowed, "the switch is put back"
    path.write_bytes(data)
    assert read_image(path).shape == (60, 90, 3)


def test_truncated_files_beside_another_thread(
    pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that ends does not let the others accept what is cut."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    (tmp_path / "cut.jpg").write_bytes(_jpeg(pixels)[:-500])
    first, second = reading("first"), reading("second")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with pytest.raises(OSError, match="truncated"), Image.open(tmp_path / "cut.jpg") as image:
        image.load()
    second.__exit__(None, None, None)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize(
    ("name", "mode", "dtype"),
    [("a.png", "I;16", np.uint16), ("a.tif", "I", np.int32), ("a.tif", "F", np.float32)],
)
def test_more_than_eight_bits_are_refused(
    name: str, mode: str, dtype: type, tmp_path: Path
) -> None:
    """Pillow would make them white."""
    path = tmp_path / name
    Image.fromarray(np.full((6, 8), 3_000, dtype=dtype)).save(path)
    for read, source in ((read_image, path), (as_pixels, path), (as_pixels, Image.open(path))):
        with pytest.raises(ImageError, match=rf"{name} has more than 8 bits.*mode {mode}\)"):
            read(source)
    unnamed = Image.fromarray(np.full((6, 8), 3_000, dtype=dtype))
    with pytest.raises(ImageError, match=r"from Pillow has more than 8 bits"):
        as_pixels(unnamed)


def test_truncated_png(pixels: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ImageError, match=r"cut\.png is truncated or corrupt"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("exif", [b"", b"Exif\0\0no directory", 1, 3, 6, 8])
def test_size_is_that_of_the_image_that_is_read(
    pixels: np.ndarray, tmp_path: Path, suffix: str, exif: bytes | int
) -> None:
    path = tmp_path / f"x.{suffix}"
    if isinstance(exif, int):
        orientation = Image.Exif()
        orientation[0x0112] = exif
        exif = orientation.tobytes()
    Image.fromarray(pixels).save(path, exif=exif)
    assert image_size(path) == read_image(path).shape[:2]
