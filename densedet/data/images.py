"""Reading images."""

import os
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import MappingProxyType
from typing import Any, BinaryIO, Literal

import numpy as np
from detectron2.data import detection_utils
from PIL import Image, ImageFile

from densedet.errors import ConfigError, DatasetError, DensedetError, ImageError
from densedet.files import check_regular

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")
"""Of images, as Pillow names them. It knows others, which run programs (EPS) or unpack much; a file
is what its content says, whatever its name is. "JPEG" stands for MPO too, which cameras write."""

LABEL_FORMATS = ("PNG", "TIFF", "BMP", "PPM", "GIF")
"""Of maps of labels and of segments: exact, and with up to 16 bits."""

MAX_PIXELS_VARIABLE = "DENSEDET_MAX_PIXELS"
"""The environment variable with the most pixels that an image may have; default is Pillow's."""

_EXIF_ORIENTATION, _EXIF_TRANSPOSED = 0x0112, (5, 6, 7, 8)
_LABEL_MODES = MappingProxyType({8: ("L", "P"), 16: ("I;16", "I;16L", "I;16B")})  # Pillow's


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image as Detectron2 does (EXIF orientation applied), in RGB.

    Args:
        path: a file of one of the `IMAGE_FORMATS`; grey and palette images become RGB.

    Returns:
        (H, W, 3) uint8 array, writable, RGB.

    Raises:
        ImageError: the file is missing, is not an image, has more than 8 bits a channel or more
            pixels than :func:`pixel_limit`, or is truncated or corrupt (also where the program has
            told Pillow to accept truncated files, and where only the checksums of a PNG show it).
    """
    name = os.fspath(path)
    with open_image(name) as image:
        check_bits(image.mode, name)
        upright = detection_utils._apply_exif_orientation(image)
        return np.array(detection_utils.convert_PIL_to_numpy(upright, "RGB"))


@contextmanager
def open_image(
    path: str | os.PathLike[str],
    formats: tuple[str, ...] = IMAGE_FORMATS,
    header_only: bool = False,
) -> Iterator[Image.Image]:
    """Open an image whose pixels are not decoded yet, in one pass over the file.

    Args:
        path: a regular file.
        formats: those that it may have, as Pillow names them.
        header_only: nothing but size and mode are wanted: leave the checksums of a PNG alone.

    Raises:
        ImageError: as :func:`read_image`, also for what Pillow raises in the block.
    """
    name = os.fspath(path)
    with reading(name):
        check_regular(name)
        with open(name, "rb") as file:
            image = _identify(file, formats)
            if image is not None and image.format == "PNG" and not header_only:
                image.verify()  # the decoder looks at no checksum
                image = _identify(file, ("PNG",))
            if image is None:
                raise ImageError(
                    f"{name} is not an image of a format that is read here "
                    f"({', '.join(formats)}); replace or convert the file"
                )
            _check_pixels(image, name)
            with image:
                yield image


def _identify(file: BinaryIO, formats: tuple[str, ...]) -> Image.Image | None:
    """As ``Image.open``, but the size is left to the caller: it warns of what is then refused.

    None if it is of no such format. Raises what Pillow raises on a damaged header.
    """
    file.seek(0)
    prefix = file.read(16)
    failure: Exception | None = None
    for name in formats:
        factory, accepts = _plugins().get(name, (None, lambda _: False))
        if accepts(prefix) not in (True, 1):  # text says why it is not supported
            continue
        file.seek(0)
        try:
            image: Image.Image = factory(file, "")
            return image
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            failure = error
    if failure is not None:
        raise SyntaxError(str(failure)) from failure
    return None


@cache
def _plugins() -> Mapping[str, Any]:
    """Pillow's readers; AVIF is not in every Pillow."""
    Image.init()
    return {name: Image.OPEN[name] for name in IMAGE_FORMATS if name in Image.OPEN}


def pixel_limit() -> int | None:
    """The most pixels that an image may have: of `MAX_PIXELS_VARIABLE`, or else Pillow's own.

    Pillow warns above its ``Image.MAX_IMAGE_PIXELS`` (89 million); None, which a program may set,
    is no limit.

    Raises:
        ConfigError: the variable is not a whole number above 0.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE, "").strip()
    if not text:
        return Image.MAX_IMAGE_PIXELS
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"{MAX_PIXELS_VARIABLE}={text!r}: give a whole number of pixels above 0")
    return int(text)


def _check_pixels(image: Image.Image, name: str) -> None:
    limit = pixel_limit()
    if limit is not None and image.width * image.height > limit:
        raise ImageError(
            f"image {name} has {image.width:,} x {image.height:,} pixels, more than the limit of "
            f"{limit:,}; make it smaller or cut it into parts, or set "
            f"{MAX_PIXELS_VARIABLE}={image.width * image.height} if there is memory for it"
        )


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
    with open_image(name, LABEL_FORMATS) as image:
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
    with open_image(name, LABEL_FORMATS, header_only=True) as image:
        return image.height, image.width


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of an image as :func:`read_image` gives it: header and EXIF orientation.

    Raises:
        ImageError: the file is missing or is not an image.
    """
    name = os.fspath(path)
    with open_image(name, header_only=True) as image:
        size = image.height, image.width
        return size[::-1] if _orientation(image) in _EXIF_TRANSPOSED else size


def exif_orientation(path: str | os.PathLike[str]) -> int:
    """The EXIF tag that says how an image is to be turned: 1 (not at all, also without one) to 8.

    Raises:
        ImageError: the file is missing or is not an image.
    """
    name = os.fspath(path)
    with open_image(name, header_only=True) as image:
        return _orientation(image)


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # Detectron2 reads an image with broken EXIF data as if it had none
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what Pillow raises on a bad image into ``ImageError``.

    Args:
        name: what the message calls the image.
    """
    try:
        with _STRICT:
            yield
    except (DensedetError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise ImageError(
            f"image {name} does not exist; check the image folder that the data set or the command "
            "was given"
        ) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not an image, or one in a format that this Pillow cannot read; "
            "replace the file"
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"image {name} is refused: {error}; {MAX_PIXELS_VARIABLE} sets the limit"
        ) from error
    except Exception as error:  # of a damaged file Pillow's decoders raise whatever happens
        if isinstance(error, OSError) and error.strerror:  # the system's word, not Pillow's
            raise ImageError(
                f"image {name} cannot be opened ({error.strerror}); give a readable file"
            ) from error
        raise ImageError(
            f"image {name} is truncated or corrupt ({_reason(error)}); fetch or write it again"
        ) from error


def _reason(error: Exception) -> str:
    """The first line of what an error says, or its type."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


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
            f"annotation record says {stated[0]}x{stated[1]}; "
            f"{size_remedy(record['file_name'], stated, (width, height))}"
        )


def size_remedy(
    path: str | os.PathLike[str], annotated: tuple[int, int], found: tuple[int, int]
) -> str:
    """What to do about an image whose size is not that of its annotation.

    Args:
        path: of the image.
        annotated: width and height of the annotation, pixels.
        found: those of the image as it was read.
    """
    if annotated == found[::-1] and exif_orientation(path) in _EXIF_TRANSPOSED:
        followed = image_size(path) == annotated
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
    turn on: the missing part of an image is then silently grey. So is the limit of pixels, which
    some formats look at while they are decoded. Both are put back when the last of the threads that
    read has ended.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._before: tuple[bool, int | None] = (False, None)

    def __enter__(self) -> None:
        limit = pixel_limit()
        with self._lock:
            if not self._readers:
                self._before = (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)
                ImageFile.LOAD_TRUNCATED_IMAGES = False
                Image.MAX_IMAGE_PIXELS = limit
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if not self._readers:
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = self._before


_STRICT = _StrictPillow()
