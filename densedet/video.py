"""Reading and writing videos frame by frame."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from densedet.errors import ImageError, OutputError
from densedet.files import atomic_path, check_regular

logger = logging.getLogger(__name__)

_FRAMES_PER_SECOND = 25.0  # where the source does not say
_RATES = (1.0, 240.0)


class Video:
    """The frames of a video file or of a camera, each once.

    Args:
        source: a file, or the number of a camera.

    Attributes:
        rate: frames a second; 25 where the source says none in 1..240.
        length: number of frames that the file announces; None where it is not known.

    Raises:
        ImageError: it cannot be opened, or the number is below 0 or huge.
    """

    def __init__(self, source: str | os.PathLike[str] | int) -> None:
        self.name = f"camera {source}" if isinstance(source, int) else os.fspath(source)
        if isinstance(source, int) and not 0 <= source < 2**31:
            raise ImageError(f"there is no {self.name}; cameras are numbered from 0")
        if not isinstance(source, int):
            _check_file(self.name)
        self._capture = _open(source if isinstance(source, int) else self.name)
        if not self._capture.isOpened():
            raise ImageError(f"{self.name} cannot be opened as a video; give another")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if _RATES[0] <= rate <= _RATES[1] else _FRAMES_PER_SECOND
        length = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.length = length if length > 0 else None

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames that are left, (H, W, 3) uint8 RGB.

        A video that ends before its announced length is logged as a warning: it may be damaged, or
        announce a wrong length.

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
        if self.length is not None and count < self.length:
            logger.warning("%s ends after frame %d of %d", self.name, count, self.length)


class VideoWriter:
    """Writes frames of one size into an MP4 file; see `write_video`."""

    def __init__(self, target: str, path: str, rate: float) -> None:
        self._target, self._path, self._rate = target, path, rate
        self._size = (0, 0)
        self._count = 0
        self._writer: Any = None

    def add(self, frame: NDArray[np.uint8]) -> None:
        """Append a frame (H, W, 3) uint8 RGB; an odd last row or column is left out.

        Raises:
            OutputError: this OpenCV cannot write MP4, or the frame has another size than the first.
        """
        height, width = (side - side % 2 for side in frame.shape[:2])
        if self._writer is None:
            self._size = (width, height)
            code = cv2.VideoWriter.fourcc(*"mp4v")
            with _quiet():
                self._writer = cv2.VideoWriter(self._path, code, self._rate, self._size)
        if not self._writer.isOpened():
            raise OutputError(
                f"{self._target}: this OpenCV writes no MP4 of {width} x {height} pixels; install "
                "opencv-python-headless"
            )
        if (width, height) != self._size:
            raise OutputError(
                f"{self._target}: frame {self._count + 1} has {width} x {height} pixels, those "
                f"before {self._size[0]} x {self._size[1]}; a video has frames of one size"
            )
        even = np.ascontiguousarray(frame[:height, :width])
        self._writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))
        self._count += 1

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()

    def check(self) -> None:
        """Count the frames in the file, since OpenCV does not say what could not be written.

        Raises:
            OutputError: there is none, or there are fewer than were added.
        """
        if not self._count:
            raise OutputError(f"{self._target}: a video needs at least one frame, none was added")
        capture = _open(self._path)
        found = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))  # 0 of what cannot be opened
        capture.release()
        if found != self._count:
            raise OutputError(
                f"{self._target} cannot be written: not all of its {self._count} frames are in the "
                "file; check the free space"
            )


@contextmanager
def write_video(path: str | os.PathLike[str], rate: float) -> Iterator[VideoWriter]:
    """Write an MP4 file that is whole or absent.

    Args:
        path: of the file.
        rate: frames a second.

    Raises:
        OutputError: it cannot be written, or gets no frame.
    """
    with atomic_path(path) as temporary:
        writer = VideoWriter(os.fspath(path), str(temporary), rate)
        try:
            yield writer
        finally:
            writer.close()
        writer.check()


def _check_file(name: str) -> None:
    try:
        check_regular(name)
    except FileNotFoundError as error:
        raise ImageError(f"video {name} does not exist; check the path") from error
    except OSError as error:
        raise ImageError(f"video {name} cannot be opened ({error.strerror})") from error


def _open(source: str | int) -> cv2.VideoCapture:
    with _quiet():
        return cv2.VideoCapture(source)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep OpenCV and FFmpeg from writing on stderr what is told by errors and warnings here."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # OpenCV reads it at the first video
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)
