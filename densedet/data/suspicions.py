"""What a data set says that is probably not meant: a warning when it is loaded, in training too."""

import logging
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from densedet.data.images import read_label_map
from densedet.errors import DatasetError, ImageError

logger = logging.getLogger(__name__)

_SAMPLE = 8  # label maps
_PLACEHOLDER = re.compile(r"_+[^_].*_")


def warn_of_placeholders(names: Sequence[str], place: str) -> None:
    """Name the categories that stand for nothing, as labelling tools write them.

    labelme has ``_background_`` and ``__ignore__`` in its class lists; as a category of a
    vocabulary such a name is prompted and competes like any other.

    Args:
        names: of the categories.
        place: where they are, for the message.
    """
    found = [name for name in names if _PLACEHOLDER.fullmatch(name)]
    if found:
        logger.warning(
            "%s: %s a category like any other, and is prompted by that name; give it words, such "
            "as 'background', or leave it out and ignore its pixels",
            place,
            " and ".join(map(repr, found)) + (" is" if len(found) == 1 else " are each"),
        )


def warn_of_binary_masks(
    records: Sequence[dict[str, Any]], ignore_label: int, first: str, place: str
) -> None:
    """Look at a sample of the label maps for masks of 0 and 255, where 255 is ignored.

    Such a mask means 255 as the object, but only its background counts then, as the first class.

    Args:
        records: with "sem_seg_file_name"; maps that cannot be read are left to those who read them.
        ignore_label: of the data set.
        first: the name of the class 0.
        place: the folder, for the message.
    """
    bits: Literal[8, 16] = 8 if ignore_label <= 255 else 16
    found: set[int] = set()
    sample = records[:: max(1, len(records) // _SAMPLE)][:_SAMPLE]
    for record in sample:
        try:
            labels = read_label_map(record["sem_seg_file_name"], bits)
        except (ImageError, DatasetError):
            continue
        found.update(np.flatnonzero(np.bincount(labels.ravel())).tolist())
    if found == {0, ignore_label}:
        logger.warning(
            "%s: the label maps hold 0 and %d alone (%d of %d were looked at), and %d is ignored: "
            "only %r is trained and evaluated. If %d is the object, write it as 1, and name two "
            "classes, the background and the object",
            place,
            ignore_label,
            len(sample),
            len(records),
            ignore_label,
            first,
            ignore_label,
        )
