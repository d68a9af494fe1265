"""Whether a model numbers its classes as its data sets do."""

from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from omegaconf import DictConfig, ListConfig
from torch import nn

from densedet.errors import ConfigError
from densedet.vocabulary import Vocabulary
from densedet.vocabulary.category import prompt_key


def check_vocabulary(cfg: DictConfig, model: nn.Module, part: str) -> None:
    """Check that ``model`` numbers its classes as the data sets of ``dataloader.{part}`` do.

    Only where the model has a ``vocabulary``. A data set with a vocabulary in its metadata must
    have the same one. Of another one, like Detectron2's own, the names of the classes are known:
    they may be other names than the model's, but a name that both have must have one number.

    Args:
        part: "train" (labels and seen flags must agree) or "test" (labels only).

    Raises:
        ConfigError: they differ.
    """
    own = getattr(model, "vocabulary", None)
    if isinstance(own, Vocabulary):
        check_loader(own, cfg.dataloader.get(part), f"dataloader.{part}", seen=part == "train")


def check_loader(own: Vocabulary, loader: Any, where: str, seen: bool = False) -> None:
    """Check a vocabulary against the data sets that the config of a loader names.

    Args:
        own: how the model numbers its classes.
        loader: the config; nothing is checked where it has no ``dataset.names``.
        where: its key in the whole config.
        seen: compare the seen flags too.

    Raises:
        ConfigError: they differ.
    """
    node: Any = loader
    for key in ("dataset", "names"):
        node = node.get(key) if isinstance(node, DictConfig) else None
    for name in [node] if isinstance(node, str) else node if isinstance(node, ListConfig) else []:
        metadata = MetadataCatalog.get(name) if name in MetadataCatalog else Metadata()
        theirs = metadata.get("vocabulary")
        if theirs is not None:
            panoptic = "panoptic" in metadata.get("evaluator_type", "")
            difference = _difference(own, theirs, seen, kinds=panoptic)
        else:
            theirs = _class_names(metadata)
            difference = _misplaced(own, theirs)
        if difference:
            raise ConfigError(
                f"model.vocabulary ({len(own)} classes) is not that of the data set {name} "
                f"({len(theirs)} classes) in {where}: {difference}; set model.vocabulary "
                "to the vocabulary of the data set"
            )


def _difference(model: Vocabulary, data: Vocabulary, seen: bool, kinds: bool) -> str:
    """Describe the first class that differs; "" if none does."""
    different = model.first_difference(data)
    if different is not None:
        return _describe(*different)
    for i, (ours, theirs) in enumerate(zip(model, data, strict=True)):
        if seen and ours.seen != theirs.seen:
            words = ["seen" if c.seen else "unseen" for c in (ours, theirs)]
            return f"class {i} ({ours.label!r}) is {words[0]} in the model, {words[1]} in the data"
        if kinds and ours.kind != theirs.kind:
            return (
                f"class {i} ({ours.label!r}) is {ours.kind} in the model, {theirs.kind} in the data"
            )
    return ""


def _class_names(metadata: Metadata) -> list[str]:
    """The class names of a data set without vocabulary; none where things and stuff are mixed."""
    evaluator = metadata.get("evaluator_type", "")
    if "panoptic" in evaluator:
        return []
    key = "stuff_classes" if evaluator.endswith("sem_seg") else "thing_classes"
    return list(metadata.get(key, ()))


def _misplaced(model: Vocabulary, names: list[str]) -> str:
    """Describe the first name that is another class of the model; "" if none is."""
    indices = {prompt_key(label): i for i, label in enumerate(model.labels)}
    for i, name in enumerate(names):
        if indices.get(prompt_key(name), i) != i:
            own = repr(model.labels[i]) if i < len(model) else "nothing"
            return _describe(i, own, repr(name))
    return ""


def _describe(index: int, model: str, data: str) -> str:
    return f"class {index} is {model} in the model and {data} in the data"
