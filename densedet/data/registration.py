"""Registering the same data set twice is fine; another one under its name is not."""

from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from densedet.errors import DatasetError
from densedet.vocabulary import Vocabulary


def is_registered(name: str, arguments: dict[str, Any]) -> bool:
    """Whether ``name`` is in Detectron2's catalogs, with these ``arguments``.

    Args:
        name: of a data set.
        arguments: what it is made from; compared with the metadata ``registration``.

    Raises:
        DatasetError: the name is taken by another data set.
    """
    if name not in DatasetCatalog:
        return False
    before = MetadataCatalog.get(name).get("registration", {})
    changed = [key for key in arguments | before if arguments.get(key) != before.get(key)]
    if changed:
        raise DatasetError(
            f"data set {name!r} is already registered, with {_differences(before, changed)} "
            f"instead of {_differences(arguments, changed)}; choose another name, or remove it "
            "first with DatasetCatalog.remove and MetadataCatalog.remove"
        )
    return True


def _differences(arguments: dict[str, Any], keys: list[str]) -> str:
    def value(item: object) -> str:
        return item.digest()[:12] if isinstance(item, Vocabulary) else repr(item)

    return ", ".join(f"{key}={value(arguments.get(key))}" for key in keys)
