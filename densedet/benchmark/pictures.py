"""Pictures for the loaders: JPEG files whose spectrum, and so whose size, is a photograph's."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densedet.benchmark.defaults import HEIGHT, WIDTH

QUALITY = 90


def write_pictures(
    folder: Path, count: int, height: int = HEIGHT, width: int = WIDTH
) -> list[dict[str, Any]]:
    """Write JPEG files of quality 90, always the same ones, and return their records.

    Amplitudes fall with the spatial frequency to the power 1.2, the mean of natural images
    (Tolhurst et al., Ophthalmic and Physiological Optics 12, 1992), so that a file is about as
    large as a photograph and takes as long to decode.

    Args:
        folder: where ``000000.jpg`` and so on are written; made if missing.
        count: how many.
        height, width: pixels.

    Returns:
        Records with file_name, image_id, height and width.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        Image.fromarray(_picture(number, height, width)).save(path, quality=QUALITY)
        record = {"file_name": str(path), "image_id": number, "height": height, "width": width}
        records.append(record)
    return records


def mean_size(records: list[dict[str, Any]]) -> float:
    """Mean bytes of the records' files."""
    return float(np.mean([Path(record["file_name"]).stat().st_size for record in records]))


def _picture(seed: int, height: int, width: int) -> np.ndarray:
    """``[H, W, 3]`` uint8: noise of amplitudes f^-1.2, its channels correlated."""
    generator = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = np.inf
    noise = generator.standard_normal((3, height, width))
    shaped = np.fft.irfft2(np.fft.rfft2(noise) / frequency**1.2, s=(height, width))
    mixed = shaped[:1] + 0.3 * shaped[1:].mean(axis=0) + 0.3 * shaped
    pixels = 127 + 45 * mixed / mixed.std()
    return np.ascontiguousarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
