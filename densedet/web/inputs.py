"""Pictures and words of strangers: what is too much is refused before it costs memory or time."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from densedet.data.images import open_image, read_image
from densedet.errors import ImageError, VocabularyError
from densedet.vocabulary import Vocabulary

MOST_PIXELS = 20_000_000
"""Of a picture."""

MOST_BYTES = 50_000_000
"""Of the file of a picture."""

SIDE = 640
"""The longer side, pixels, in which larger pictures are looked at."""

MOST_WORDS = 1_000
"""Of a vocabulary, synonyms included."""

MOST_CHARACTERS = 32_000
"""Of the text of a vocabulary."""

MOST_SCORES = 30_000_000
"""Categories times pixels: a model of segments has a score for each, in fp32, and some copies."""


def read_picture(path: str) -> NDArray[np.uint8]:
    """Read a picture of at most `MOST_PIXELS`, and make it smaller where a side is above `SIDE`.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: the file is no picture, or too large. The message has its name, not its folder.
    """
    try:
        with open_image(path, header_only=True) as opened:
            width, height = opened.size
        if height * width > MOST_PIXELS:
            raise ImageError(
                f"{path} has {width:,} x {height:,} pixels, {height * width / 1e6:.1f} million; "
                f"this page takes {MOST_PIXELS // 10**6} million: make it smaller"
            )
        picture = Image.fromarray(read_image(path))
    except ImageError as error:
        raise ImageError(str(error).replace(path, Path(path).name)) from error
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.array(picture)


def read_words(words: str, stuff: str = "") -> Vocabulary:
    """Read a vocabulary as of `Vocabulary.typed`: one category a line, or between ";", and so on.

    The text is never taken for the name of a file or of a class list.

    Raises:
        VocabularyError: no words, more than `MOST_WORDS`, or ambiguous ones.
    """
    count = sum(bool(word.strip()) for word in re.split("[,;\n\uff0c\uff1b]", f"{words};{stuff}"))
    _check_count(count)
    check_length(words + stuff)
    if not words.strip(" \t\r\n;"):
        raise VocabularyError("no words: type what to look for, such as: red star; blue ring")
    vocabulary = Vocabulary.typed(words)
    if stuff.strip(" \t\r\n;"):
        vocabulary = vocabulary.with_stuff(Vocabulary.typed(stuff))
    _check_count(len(vocabulary.synonyms))
    return vocabulary


def _check_count(count: int) -> None:
    if count > MOST_WORDS:
        raise VocabularyError(
            f"{count:,} words are too many: this page takes {MOST_WORDS:,}, synonyms included"
        )


def check_length(text: str) -> None:
    """Raise VocabularyError for more text than `MOST_CHARACTERS`."""
    if len(text) > MOST_CHARACTERS:
        raise VocabularyError(
            f"{len(text):,} characters are too many: this page takes {MOST_CHARACTERS:,}"
        )


def check_scores(vocabulary: Vocabulary, image: NDArray[np.uint8]) -> None:
    """Raise VocabularyError for more than `MOST_SCORES` categories times pixels (H, W, 3)."""
    height, width = image.shape[:2]
    if len(vocabulary) * height * width > MOST_SCORES:
        raise VocabularyError(
            f"{len(vocabulary):,} categories are too many for {width:,} x {height:,} pixels: take "
            f"{MOST_SCORES // (height * width):,}, or a smaller picture"
        )
