"""What the web page, tools/web_demo.py, takes from its visitors."""

from densedet.web.inputs import (
    MOST_BYTES,
    MOST_CHARACTERS,
    MOST_PIXELS,
    MOST_SCORES,
    MOST_WORDS,
    SIDE,
    check_length,
    check_scores,
    read_picture,
    read_words,
)

__all__ = [
    "MOST_BYTES",
    "MOST_CHARACTERS",
    "MOST_PIXELS",
    "MOST_SCORES",
    "MOST_WORDS",
    "SIDE",
    "check_length",
    "check_scores",
    "read_picture",
    "read_words",
]
