"""Semantic segmentation as pairs of an image and a label map, with checks; ADE20K.

A label map is a grey image of the size of its image: the index of each pixel's class, or the
ignored label for pixels that count nowhere. That is 255 in 8-bit PNG; where it is above 255 (65535)
the maps are 16-bit TIFF or PNG. A map has the path of its image below another folder, with another
suffix.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from densedet.data.registration import is_registered
from densedet.data.suspicions import warn_of_binary_masks, warn_of_placeholders
from densedet.errors import DatasetError
from densedet.files import check_regular
from densedet.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

IGNORED_LABEL, IGNORED_16_BIT = 255, 65535
_IMAGES = (".jpg", ".jpeg", ".png")
_LABELS = (".png",)
_LABELS_16_BIT = (".tif", ".tiff", ".png")


def load_semantic_format(
    image_root: str | os.PathLike[str],
    label_root: str | os.PathLike[str],
    vocabulary: Vocabulary,
    hint: str = "",
    label_hint: str = "",
    ignore_label: int = IGNORED_LABEL,
    names_file: str | os.PathLike[str] | None = None,
) -> list[dict[str, Any]]:
    """Pair the images of one folder (JPEG, PNG) with the label maps (PNG, TIFF) of another.

    Folders below them are searched as well. No image or label map is opened.

    Args:
        image_root: folder of the images.
        label_root: folder of the label maps.
        vocabulary: names the labels, in the order of their numbers.
        hint: added to the message if there are no images: where they come from.
        label_hint: the same for label maps; default is ``hint``.
        ignore_label: label of pixels that count nowhere; above 255 the label maps have 16 bits.
        names_file: a list of the images to take, each a path in the folder without suffix; default
            is all. Other files are then left alone.

    Returns:
        One dict an image in the order of the paths: "file_name" and "sem_seg_file_name".

    Raises:
        DatasetError: a folder is missing or has no such file; an image has no label map or a label
            map no image; two files differ in their suffix alone; the list is missing or empty; the
            vocabulary has more categories than the label maps can number.
    """
    if len(vocabulary) > ignore_label:
        bits = 8 if ignore_label <= 255 else 16
        raise DatasetError(
            f"a vocabulary of {len(vocabulary)} categories: {bits}-bit label maps with "
            f"{ignore_label} for ignored pixels number at most {ignore_label}"
        )
    pairs = pair_files(image_root, label_root, hint, label_hint, ignore_label, names_file)
    logger.info("%s: %d images with label maps", image_root, len(pairs))
    return [
        {"file_name": str(image), "sem_seg_file_name": str(labels)}
        for image, labels in pairs.values()
    ]


def pair_files(
    image_root: str | os.PathLike[str],
    label_root: str | os.PathLike[str],
    hint: str = "",
    label_hint: str = "",
    ignore_label: int = IGNORED_LABEL,
    names_file: str | os.PathLike[str] | None = None,
) -> dict[str, tuple[Path, Path]]:
    """The image and the label map of each path in the folders without suffix, in its order.

    Args:
        image_root, label_root, hint, label_hint, ignore_label, names_file: see
            :func:`load_semantic_format`.

    Raises:
        DatasetError: as there.
    """
    images = _files(Path(image_root), _IMAGES, "image", hint)
    suffixes = _LABELS if ignore_label <= 255 else _LABELS_16_BIT
    labels = _files(Path(label_root), suffixes, "label map", label_hint or hint)
    if names_file is not None:
        names = read_names(names_file, hint)
        images = _listed(images, names, f"image of {names_file} in {image_root}")
        labels = _listed(labels, names, f"label map of {names_file} in {label_root}")
    _check_pairs(images, labels, f"label map in {label_root}")
    _check_pairs(labels, images, f"image in {image_root}")
    return {key: (images[key], labels[key]) for key in sorted(images)}


def read_names(path: str | os.PathLike[str], hint: str = "") -> list[str]:
    """The first words of the lines of a text file, as PASCAL VOC lists the images of a split.

    Args:
        path: of the list.
        hint: added to the message if it is missing: where it comes from.

    Raises:
        DatasetError: the file is missing, empty or no text, or names an image twice.
    """
    try:
        check_regular(path)
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise DatasetError(f"list {path} does not exist{hint and '; '}{hint}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"list {path} cannot be read ({error}); fetch it again") from error
    names = [line.split()[0] for line in lines if line.strip()]
    if not names or len(set(names)) < len(names):
        raise DatasetError(f"list {path} is empty or names an image twice; fetch it again")
    return names


def _listed(files: dict[str, Path], names: list[str], kind: str) -> dict[str, Path]:
    missing = [name for name in names if name not in files]
    if missing:
        raise DatasetError(
            f"{missing[0]}: there is no {kind} ({len(missing)} of {len(names)} are missing); add "
            "the missing files"
        )
    return {name: files[name] for name in names}


def _files(root: Path, suffixes: tuple[str, ...], kind: str, hint: str) -> dict[str, Path]:
    """The files below ``root`` by their path there without suffix."""
    if not root.is_dir():
        raise DatasetError(f"{kind} folder {root} does not exist{hint and '; '}{hint}")
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() not in suffixes:
            continue
        key = path.relative_to(root).with_suffix("").as_posix()
        if key in found:
            raise DatasetError(
                f"{kind}s {found[key]} and {path} differ in their suffix alone; remove one"
            )
        found[key] = path
    if not found:
        raise DatasetError(
            f"{kind} folder {root} has no file *{', *'.join(suffixes)}{hint and '; '}{hint}"
        )
    return found


def _check_pairs(files: dict[str, Path], partners: dict[str, Path], partner: str) -> None:
    alone = [path for key, path in sorted(files.items()) if key not in partners]
    if alone:
        raise DatasetError(
            f"{alone[0]} has no {partner} ({len(alone)} of {len(files)} files have none); add the "
            "missing files or remove those that have no partner"
        )


def register_semantic_format(
    name: str,
    image_root: str | os.PathLike[str],
    label_root: str | os.PathLike[str],
    vocabulary: Vocabulary,
    hint: str = "",
    label_hint: str = "",
    check: Callable[[list[dict[str, Any]]], None] | None = None,
    ignore_label: int = IGNORED_LABEL,
    names_file: str | os.PathLike[str] | None = None,
) -> None:
    """Register images with label maps; the folders are read when the data set is loaded.

    Then some label maps are looked at, and it warns where they hold 0 and the ignored label alone.

    The metadata are ``stuff_classes``, ``vocabulary``, ``ignore_label``, ``image_root``,
    ``sem_seg_root``, ``evaluator_type`` ("sem_seg") and ``registration`` (the arguments).

    Args:
        name: name in Detectron2's catalogs.
        image_root, label_root, vocabulary, hint, label_hint, ignore_label, names_file: see
            :func:`load_semantic_format`.
        check: called with the records when the data set is loaded; raises DatasetError.

    Raises:
        DatasetError: the name is taken by another data set. The same call twice is fine. On
            loading: as :func:`load_semantic_format`.
    """
    arguments: dict[str, Any] = {
        "image_root": os.fspath(image_root),
        "label_root": os.fspath(label_root),
        "vocabulary": vocabulary,
        "ignore_label": ignore_label,
        "names_file": None if names_file is None else os.fspath(names_file),
    }
    if is_registered(name, arguments):
        return

    def load() -> list[dict[str, Any]]:
        records = load_semantic_format(
            image_root, label_root, vocabulary, hint, label_hint, ignore_label, names_file
        )
        if check is not None:
            check(records)
        warn_of_placeholders(vocabulary.labels, arguments["label_root"])
        warn_of_binary_masks(records, ignore_label, vocabulary.labels[0], arguments["label_root"])
        return records

    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        stuff_classes=list(vocabulary.labels),
        vocabulary=vocabulary,
        ignore_label=ignore_label,
        image_root=arguments["image_root"],
        sem_seg_root=arguments["label_root"],
        evaluator_type="sem_seg",
        registration=arguments,
    )
