"""Reading and writing films frame by frame."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from densedet.errors import ImageError, OutputError
from densedet.files import atomic_path

_FRAMES_PER_SECOND = 25.0  # where the source does not say


class Film:
    """The frames of a video file or of a camera, each once.

    Args:
        source: a file, or the number of a camera.

    Attributes:
        rate: frames a second.
        length: number of frames that the file announces; None where it is not known.

    Raises:
        ImageError: it cannot be opened.
    """

    def __init__(self, source: str | os.PathLike[str] | int) -> None:
        self.name = f"camera {source}" if isinstance(source, int) else os.fspath(source)
        if not isinstance(source, int) and not os.path.isfile(source):
            raise ImageError(f"video {self.name} does not exist; check the path")
        self._capture = cv2.VideoCapture(source if isinstance(source, int) else self.name)
        if not self._capture.isOpened():
            raise ImageError(f"{self.name} cannot be opened as a video; give another")
        self.rate = self._capture.get(cv2.CAP_PROP_FPS) or _FRAMES_PER_SECOND
        length = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.length = length if length > 0 else None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames that are left, (H, W, 3) uint8 RGB.

        Raises:
            ImageError: there is none.
        """
        count = 0
        try:
            while True:
                there, frame = self._capture.read()
                if not there:
                    break
                count += 1
                yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), dtype=np.uint8)
        finally:
            self._capture.release()
        if not count:
            raise ImageError(f"{self.name} has no frame that can be read; give another video")


class FilmWriter:
    """Writes frames of one size into an MP4 file; see `write_film`."""

    def __init__(self, path: str, rate: float) -> None:
        self._path, self._rate = path, rate
        self._writer: Any = None

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame (H, W, 3) uint8 RGB; an odd last row or column is left out.

        Raises:
            OutputError: this OpenCV cannot write MP4.
        """
        height, width = (side - side % 2 for side in frame.shape[:2])
        if self._writer is None:
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(self._path, code, self._rate, (width, height))
        if not self._writer.isOpened():
            raise OutputError(
                f"{self._path}: this OpenCV writes no MP4; install opencv-python-headless"
            )
        even = np.ascontiguousarray(frame[:height, :width])
        self._writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()


@contextmanager
def write_film(path: str | os.PathLike[str], rate: float) -> Iterator[FilmWriter]:
    """Write an MP4 file that is whole or absent.

    Args:
        path: of the file.
        rate: frames a second.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_path(path) as temporary:
        writer = FilmWriter(str(temporary), rate)
        try:
            yield writer
        finally:
            writer.close()
