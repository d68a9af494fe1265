"""Results as one JSON file, with what they are the results of."""

import json
import math
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor

from densedet.files import write_text
from densedet.vocabulary import Vocabulary
from densedet.weights import weights_digest

PROVENANCE = "provenance"

# What the figures may depend on, by the name of the installed package.
_PACKAGES = (
    "densedet",
    "torch",
    "torchvision",
    "detectron2",
    "numpy",
    "pillow",
    "timm",
    "open_clip_torch",
    "pycocotools",
    "faster-coco-eval",
    "lvis",
    "panopticapi-lite",
)


def write_results(
    path: str | os.PathLike[str],
    metrics: Mapping[str, Any],
    *,
    vocabulary: Vocabulary | None = None,
    weights: Mapping[str, Tensor] | None = None,
    text: Mapping[str, Any] | None = None,
    seed: int | None = None,
    data_sets: Mapping[str, Vocabulary] | None = None,
    unfinished: Sequence[str] = (),
) -> dict[str, Any]:
    """Write ``metrics`` and where they come from; a reader never sees half of the file.

    Beside the metrics, under "provenance", the file has "versions" (Python and the packages that
    are installed), "weights" (:func:`densedet.weights.weights_digest`), "vocabulary"
    (``Vocabulary.digest``), "text", "seed" and, if given, "data_sets" and "unfinished". What is
    unknown is null.

    Args:
        path: the JSON file.
        metrics: nested mappings of numbers, strings and None; a number that is not finite is
            written as null.
        vocabulary: of the model.
        weights: those that were evaluated, a state dict.
        text: what embeds the words (`VocabularyEmbedder.origin`), whose weights the model has not.
        seed: of the run.
        data_sets: data set -> the vocabulary that it was evaluated with, where it is another one.
        unfinished: the data sets whose figures are still to come.

    Returns:
        What was written.

    Raises:
        ValueError: a metric is called "provenance".
        OutputError: the file cannot be written.
    """
    if PROVENANCE in metrics:
        raise ValueError(f"no metric or data set may be called {PROVENANCE!r}")
    origin: dict[str, Any] = {
        "versions": installed_versions(),
        "weights": None if weights is None else weights_digest(weights),
        "vocabulary": None if vocabulary is None else vocabulary.digest(),
        "text": None if text is None else dict(text),
        "seed": seed,
    }
    if data_sets:
        origin["data_sets"] = {n: {"vocabulary": v.digest()} for n, v in data_sets.items()}
    if unfinished:
        origin["unfinished"] = list(unfinished)
    content: dict[str, Any] = {**plain(metrics), PROVENANCE: origin}
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
    return content


def installed_versions() -> dict[str, str]:
    """The versions of Python and of those packages that are installed and bear on the figures."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def plain(value: Any) -> Any:
    """Return ``value`` as JSON can hold it: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """The numbers and nulls of nested mappings, each with its keys joined by "/"."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}/")
        elif value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            yield f"{prefix}{key}", value
