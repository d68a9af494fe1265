"""What the web page, tools/web_demo.py, takes from its visitors, and needs on its machine."""

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
from densedet.web.serving import check_address, remove_old

__all__ = [
    "MOST_BYTES",
    "MOST_CHARACTERS",
    "MOST_PIXELS",
    "MOST_SCORES",
    "MOST_WORDS",
    "SIDE",
    "check_address",
    "check_length",
    "check_scores",
    "read_picture",
    "read_words",
    "remove_old",
]
