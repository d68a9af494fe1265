"""What is no image file, or a damaged one, is refused: by content, by checksum, by size."""

import io
import os
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from densedet.data.images import (
    IMAGE_FORMATS,
    LABEL_FORMATS,
    image_size,
    label_map_size,
    read_image,
    read_label_map,
)
from densedet.data.segment_map import read_segment_map, write_segment_map
from densedet.data.semantic_mapper import LabelReader, SemanticMapper
from densedet.errors import ConfigError, ImageError

PIXELS = np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)
LABELS = np.repeat(np.arange(30, dtype=np.uint8)[None] // 6, 20, axis=0)
READERS = {
    "image": read_image,
    "image_size": image_size,
    "labels": read_label_map,
    "labels_size": label_map_size,
    "segments": read_segment_map,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_only_regular_files_are_opened(read, tmp_path):
    """A pipe would keep the reader waiting for ever."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name, reason in (
        ("pipe", "a named pipe, not a regular file"),
        ("folder", "Is a directory"),
        ("zero", "a device, not a regular file"),
    ):
        with pytest.raises(ImageError, match=rf"{name}\.png cannot be opened \({reason}\)"):
            read(tmp_path / f"{name}.png")


def _saved(image: Image.Image, form: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


def test_every_format_of_the_list_is_read_by_its_content(tmp_path):
    image = Image.fromarray(PIXELS)
    lossless = {"PNG", "BMP", "TIFF", "PPM"}
    for form in (*IMAGE_FORMATS, "MPO"):
        if form != "MPO" and form not in Image.SAVE:
            continue  # AVIF in an old Pillow
        path = tmp_path / "any name.jpg"
        path.write_bytes(_saved(image, form))
        found = read_image(path)
        assert image_size(path) == (20, 30) and found.shape == (20, 30, 3), form
        with Image.open(path) as opened:
            expected = np.asarray(opened.convert("RGB"))
        assert np.array_equal(found, PIXELS if form in lossless else expected), form


@pytest.mark.parametrize("form", ["EPS", "PDF", "PCX", "ICNS", "TGA", "SGI"])
def test_other_formats_are_refused_whatever_the_name_is(form, tmp_path, monkeypatch):
    """Pillow hands EPS to Ghostscript."""

    def run(*_: object) -> None:
        raise AssertionError("Ghostscript")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    (tmp_path / "photo.jpg").write_bytes(_saved(Image.fromarray(PIXELS), form))
    for read in READERS.values():
        with pytest.raises(ImageError, match=r"photo\.jpg is not an image of a format .*PNG"):
            read(tmp_path / "photo.jpg")


@pytest.mark.parametrize("form", ["BMP", "GIF", "PPM", "TIFF"])
def test_label_maps_of_any_exact_format(form, tmp_path):
    path = tmp_path / "labels.png"
    path.write_bytes(_saved(Image.fromarray(LABELS), form))
    assert np.array_equal(read_label_map(path), LABELS)


@pytest.mark.parametrize("form", ["JPEG", "WEBP"])
def test_maps_are_exact(form, tmp_path):
    path = tmp_path / "labels.png"
    path.write_bytes(_saved(Image.fromarray(LABELS), form))
    expected = rf"labels\.png is not .* \({', '.join(LABEL_FORMATS)}\)"
    for read in (read_label_map, label_map_size, read_segment_map):
        with pytest.raises(ImageError, match=expected):
            read(path)


def _png(tmp_path: Path, kind: str) -> tuple[Path, object]:
    path = tmp_path / f"{kind}.png"
    if kind == "image":
        Image.fromarray(PIXELS).save(path)
        return path, read_image
    if kind == "labels":
        Image.fromarray(LABELS).save(path)
        return path, LabelReader(5)
    write_segment_map(path, LABELS * np.int64(70_001))
    return path, read_segment_map


@pytest.mark.parametrize("kind", ["image", "labels", "segments"])
def test_one_wrong_bit_of_a_png_is_found(kind, tmp_path):
    """The decoder looks at no checksum: without ours most of these are other pixels."""
    path, read = _png(tmp_path, kind)
    whole, expected = path.read_bytes(), read(path)
    draw = random.Random(5)
    for _ in range(150):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        try:
            assert np.array_equal(read(path), expected)
        except ImageError as error:
            assert "\n" not in str(error) and path.name in str(error)


def test_training_on_a_damaged_label_map_ends(tmp_path):
    labels, _ = _png(tmp_path, "labels")
    Image.fromarray(PIXELS).save(tmp_path / "image.jpg")
    record = {"file_name": str(tmp_path / "image.jpg"), "sem_seg_file_name": str(labels)}
    mapper = SemanticMapper(True, [], 5)
    mapper(record)
    data = bytearray(labels.read_bytes())
    data[data.index(b"IDAT") + 12] ^= 4
    labels.write_bytes(data)
    with pytest.raises(ImageError, match=r"labels\.png is truncated or corrupt .*checksum"):
        mapper(record)


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_the_limit_of_pixels_is_said_with_the_way_out(form, tmp_path, monkeypatch):
    """Pillow only warns up to the double of its limit."""
    path = tmp_path / "large.png"
    path.write_bytes(_saved(Image.fromarray(PIXELS), form))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    remedy = r"large\.png has 30 x 20 pixels, more than the limit of 599; .*DENSEDET_MAX_PIXELS=600"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for read in (read_image, image_size):
            with pytest.raises(ImageError, match=remedy):
                read(path)
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow itself refuses
        monkeypatch.setenv("DENSEDET_MAX_PIXELS", "600")
        assert np.array_equal(read_image(path), PIXELS)
    assert Image.MAX_IMAGE_PIXELS == 100, "Pillow's limit is put back"
    monkeypatch.setenv("DENSEDET_MAX_PIXELS", "500")
    with pytest.raises(ImageError, match="the limit of 500;"):
        read_image(path)


@pytest.mark.parametrize("text", ["many", "-5", "0", "1e9"])
def test_a_limit_that_is_none(text, tmp_path, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "x.png")
    monkeypatch.setenv("DENSEDET_MAX_PIXELS", text)
    with pytest.raises(ConfigError, match="DENSEDET_MAX_PIXELS=.*whole number"):
        read_image(tmp_path / "x.png")


def test_no_limit(tmp_path, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(tmp_path / "x.png").shape == (20, 30, 3)


def test_an_image_is_opened_once(tmp_path, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "x.jpg")
    opened = []
    monkeypatch.setattr(
        "builtins.open", lambda *a, real=open, **k: opened.append(a[0]) or real(*a, **k)
    )
    read_image(tmp_path / "x.jpg")
    assert opened == [str(tmp_path / "x.jpg")]
