"""Sizes of resized pictures."""


def fit_size(height: int, width: int, long: int, short: int, factor: float) -> tuple[int, int]:
    """The largest size of the same aspect ratio within ``(long, short)`` times ``factor``.

    The long side is at most ``floor(long * factor)``, the short side at most ``floor(short *
    factor)``; both are rounded to the nearest pixel and are at least 1. Small pictures grow.

    Args:
        height: of the picture, pixels.
        width: likewise.
        long: limit of the long side at factor 1, pixels.
        short: limit of the short side at factor 1, pixels.
        factor: of both limits.

    Returns:
        height and width, pixels.
    """
    scale = min(
        int(long * factor) / max(height, width),
        int(short * factor) / min(height, width),
    )
    return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
