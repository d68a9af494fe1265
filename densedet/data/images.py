"""Reading images."""

import os
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from detectron2.data import detection_utils
from PIL import Image, ImageFile

from densedet.errors import DatasetError, ImageError

_EXIF_ORIENTATION, _EXIF_TRANSPOSED = 0x0112, (5, 6, 7, 8)
_LABEL_MODES = MappingProxyType({8: ("L", "P"), 16: ("I;16", "I;16L", "I;16B")})  # Pillow's


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image as Detectron2 does (EXIF orientation applied), in RGB.

    Args:
        path: anything Pillow opens: JPEG, PNG, WebP, ...; grey and palette images become RGB.

    Returns:
        (H, W, 3) uint8 array, writable, RGB.

    Raises:
        ImageError: the file is missing, is not an image, has more than 8 bits a channel, or is
            truncated or corrupt (also where the program has told Pillow to accept truncated files).
    """
    name = os.fspath(path)
    with reading(name), Image.open(name) as image:
        mode = image.mode
    check_bits(mode, name)
    with reading(name):
        return np.array(detection_utils.read_image(name, format="RGB"))


def check_bits(mode: str, name: str) -> None:
    """Raise ImageError for a mode of Pillow with 16 or 32 bits, which it would cut to white.

    Args:
        mode: of an image.
        name: what the message calls the image.
    """
    if mode in ("I", "F") or mode.startswith("I;16"):
        raise ImageError(
            f"image {name} has more than 8 bits a channel (Pillow's mode {mode}); convert it to 8"
        )


def read_label_map(path: str | os.PathLike[str], bits: Literal[8, 16] = 8) -> np.ndarray:
    """Read a map of class indices.

    Args:
        path: a grey image, or with 8 bits a palette image; the labels are the numbers in the file,
            not colours.
        bits: of a label in the file.

    Returns:
        [H, W] array, uint8 or uint16, writable.

    Raises:
        ImageError: the file is missing, is not an image, or is truncated or corrupt.
        DatasetError: it has colours or another number of bits.
    """
    name = os.fspath(path)
    with reading(name), Image.open(name) as image:
        if image.mode in _LABEL_MODES[bits]:
            return np.array(image, dtype=np.uint8 if bits == 8 else np.uint16)
        mode = image.mode
    form = "an 8-bit grey PNG" if bits == 8 else "a 16-bit grey TIFF or PNG"
    raise DatasetError(
        f"label map {name} has Pillow's mode {mode}; write it as {form} of class indices"
    )


def label_map_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of a label map, from its header alone; pixels.

    Raises:
        ImageError: the file is missing or is not an image.
    """
    name = os.fspath(path)
    with reading(name), Image.open(name) as image:
        return image.height, image.width


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of an image as :func:`read_image` gives it: header and EXIF orientation.

    Raises:
        ImageError: the file is missing or is not an image.
    """
    name = os.fspath(path)
    with reading(name), Image.open(name) as image:
        try:
            orientation = image.getexif().get(_EXIF_ORIENTATION)
        except Exception:  # Detectron2 reads an image with broken EXIF data as if it had none
            orientation = None
        size = image.height, image.width
        return size[::-1] if orientation in _EXIF_TRANSPOSED else size


def exif_orientation(path: str | os.PathLike[str]) -> int:
    """The EXIF tag that says how an image is to be turned: 1 (not at all, also without one) to 8.

    Raises:
        ImageError: the file is missing or is not an image.
    """
    name = os.fspath(path)
    with reading(name), Image.open(name) as image:
        try:
            orientation = image.getexif().get(_EXIF_ORIENTATION)
        except Exception:  # as in image_size
            return 1
        return orientation if orientation in range(1, 9) else 1


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what Pillow raises on a bad image into ``ImageError``.

    Args:
        name: what the message calls the image.
    """
    try:
        with _STRICT:
            yield
    except FileNotFoundError as error:
        raise ImageError(
            f"image {name} does not exist; check the image folder that the data set or the command "
            "was given"
        ) from error
    except (IsADirectoryError, PermissionError) as error:
        raise ImageError(
            f"image {name} cannot be opened ({error.strerror}); give a readable file"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image, or one in a format that this Pillow cannot read; "
            "replace the file"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"image {name} is refused: {error}") from error
    except (OSError, SyntaxError, ValueError, EOFError, struct.error) as error:
        raise ImageError(
            f"image {name} is truncated or corrupt ({error}); fetch or write it again"
        ) from error


def check_image_size(record: Mapping[str, Any], width: int, height: int) -> None:
    """Compare the size of an image with the one in its record, where the record has one.

    Args:
        record: in Detectron2's standard format.
        width: of the image as it was read, pixels.
        height: likewise.

    Raises:
        DatasetError: they differ.
    """
    stated = (record.get("width", width), record.get("height", height))
    if stated != (width, height):
        raise DatasetError(
            f"image {record['file_name']} is {width}x{height} pixels (width x height), but its "
            f"annotation record says {stated[0]}x{stated[1]}; {_size_remedy(record, width, height)}"
        )


def _size_remedy(record: Mapping[str, Any], width: int, height: int) -> str:
    """What to do about an image of this size, which is not that of its record."""
    path = record["file_name"]
    swapped = (record.get("width"), record.get("height")) == (height, width)
    if swapped and exif_orientation(path) in _EXIF_TRANSPOSED:
        followed = image_size(path) == (height, width)
        what = "as it is stored" if followed else "as that tag turns it"
        return (
            f"its EXIF tag turns it by 90 degrees, and the annotations are for the image {what}: "
            f"set apply_exif={not followed} in the mapper (dataloader.train.mapper.apply_exif, "
            "dataloader.test.mapper.apply_exif), or write the images anew without the tag"
        )
    return "the file or the annotation belongs to another version of the data set"


class _StrictPillow:
    """Meanwhile Pillow raises on truncated files, whatever the program has set.

    ``ImageFile.LOAD_TRUNCATED_IMAGES`` is a switch for the whole process, which other libraries
    turn on: the missing part of an image is then silently grey. It is put back when the last of the
    threads that read has ended.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._before = False

    def __enter__(self) -> None:
        with self._lock:
            if not self._readers:
                self._before = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._before


_STRICT = _StrictPillow()
