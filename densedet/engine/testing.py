"""The evaluation of a model on the data sets that a config names, and ``results.json``.

``dataloader.test`` and ``dataloader.evaluator`` are evaluated first. ``dataloader.evaluators`` maps
names to further data sets, each with the same two, with ``register`` if it needs it, and with the
``vocabulary`` that the model has meanwhile; without one the model keeps its own. What the model
trained on counts as seen there, for its scores and for the figures. So an entry can be the whole
``dataloader`` of another config, of which ``train`` is not used::

    from ....configs.common.data.ade20k import dataloader as ade20k

    ade20k.vocabulary = L(Vocabulary.named)(name="ade20k_150")
    dataloader.evaluators = {"ade20k": ade20k}

An entry that is null is left out: ``dataloader.evaluators.ade20k=null`` on a machine without it.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from densedet.clip import VocabularyEmbedder
from densedet.engine.config import build
from densedet.engine.hooks import evaluation_weights
from densedet.engine.vocabulary_check import check_loader, check_vocabulary
from densedet.errors import ConfigError
from densedet.evaluation.evaluator import OpenVocabularyEvaluator
from densedet.evaluation.results import PROVENANCE, write_results
from densedet.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

RESULTS_FILE = "results.json"

_REQUIRED = ("test", "evaluator")
_KINDS: dict[str, type] = {"test": Iterable, "evaluator": DatasetEvaluator}
_KEYS = (*_REQUIRED, "vocabulary", "register", "train")


@dataclass(frozen=True)
class DataSet:
    """One data set to be evaluated.

    Attributes:
        name: its key in ``dataloader.evaluators``; "" for ``dataloader.test``.
        key: where its ``node`` stands in the config.
        node: has "test", "evaluator" and perhaps "register" and "vocabulary".
    """

    name: str
    key: str
    node: DictConfig

    def part(self, name: str) -> Any:
        """Build what stands under this key."""
        return build(self.node[name], f"{self.key}.{name}", _KINDS.get(name, object))

    def vocabulary_after(self, trained: Vocabulary | None) -> Vocabulary | None:
        """What the model is to be asked for, by what it trained on; None: its own vocabulary."""
        if not self.name or self.node.get("vocabulary") is None:
            return None
        vocabulary: Vocabulary = self.part("vocabulary")
        return vocabulary if trained is None else vocabulary.seen_by(trained)


def data_sets(cfg: DictConfig) -> list[DataSet]:
    """What a config evaluates, in order; empty if it has nothing to evaluate.

    Raises:
        ConfigError: an entry of ``dataloader.evaluators`` lacks something, or has a call that
            nothing would make.
    """
    found = []
    if all(key in cfg.dataloader for key in _REQUIRED):
        found.append(DataSet("", "dataloader", cfg.dataloader))
    further = cfg.dataloader.get("evaluators") or DictConfig({})
    if not isinstance(further, DictConfig):
        raise ConfigError("dataloader.evaluators must map names to data sets")
    for name in map(str, further):
        if further[name] is None:
            continue
        data_set = DataSet(name, f"dataloader.evaluators.{name}", further[name])
        _check_entry(data_set)
        found.append(data_set)
    return found


def _check_entry(data_set: DataSet) -> None:
    node = data_set.node if isinstance(data_set.node, DictConfig) else DictConfig({})
    missing = [key for key in _REQUIRED if key not in node]
    if missing:
        raise ConfigError(f"{data_set.key} has no {' and no '.join(missing)}")
    # what an interpolation refers to may stand there too, but no other call
    for key in map(str, node):
        if key not in _KEYS and isinstance(node[key], DictConfig) and "_target_" in node[key]:
            raise ConfigError(f"{data_set.key}.{key} is none of {', '.join(_KEYS)}")
    if data_set.name == PROVENANCE:
        raise ConfigError(f"{data_set.key}: {RESULTS_FILE} has something else there; rename it")


def register_data_sets(cfg: DictConfig) -> None:
    """Make the ``register`` calls of ``dataloader`` and of ``dataloader.evaluators``.

    Raises:
        ConfigError: see :func:`data_sets`.
        DatasetError: a name is taken by another data set.
    """
    nodes = {"dataloader": cfg.dataloader, **{d.key: d.node for d in data_sets(cfg)}}
    for key, node in nodes.items():
        register = node.get("register") or []
        if not isinstance(register, Sequence) or isinstance(register, str):
            raise ConfigError(f"{key}.register must be a list of L(...)(...)")
        for number, call in enumerate(register):
            build(call, f"{key}.register.{number}")


def check_test_vocabularies(cfg: DictConfig, model: nn.Module) -> None:
    """Check that all data sets number their classes as the model does, or will do for them.

    Raises:
        ConfigError: one does not, or the vocabulary of a model that has none is to be changed.
    """
    check_vocabulary(cfg, model, "test")
    own = getattr(model, "vocabulary", None)
    for data_set in data_sets(cfg):
        vocabulary = data_set.vocabulary_after(own)
        if vocabulary is not None and not hasattr(model, "set_vocabulary"):
            raise ConfigError(
                f"{data_set.key}.vocabulary: {type(model).__name__} has no vocabulary to change; "
                "leave it out"
            )
        words = vocabulary or own
        if data_set.name and isinstance(words, Vocabulary):
            check_loader(words, data_set.node.test, f"{data_set.key}.test")


def look_at_test_data(cfg: DictConfig) -> None:
    """Build all that will be evaluated, so that a fault shows before the training and not after it.

    The annotation files are read and checked, and the headers of some images.

    Raises:
        DatasetError, ImageError: an annotation file, a record or an image is wrong or missing.
    """
    for data_set in data_sets(cfg):
        _build(data_set, None)


def do_test(
    cfg: DictConfig, model: nn.Module, own_hooks: Sequence[HookBase] = ()
) -> dict[str, Any]:
    """Evaluate on all data sets of the config and write ``results.json``, after each of them.

    The file has what the evaluator of ``dataloader.test`` says, what the others say under the names
    of their data sets, and where it all comes from
    (:func:`densedet.evaluation.results.write_results`).

    Args:
        own_hooks: Those of ``train.hooks``; the model has their ``evaluation_weights`` meanwhile.

    Returns:
        The results, without their origin; {} on ranks other than 0, or if the config has nothing
        to evaluate.

    Raises:
        ConfigError: an entry of ``dataloader.evaluators`` does not fit, or has the name of a task
            that ``dataloader.evaluator`` reports.
    """
    todo = data_sets(cfg)
    if not todo:
        logger.info("Nothing is evaluated: the config has no dataloader.test and evaluator")
        return {}
    # without DDP: its forward may synchronise buffers, and ranks have different numbers of images
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    # all are built first: what does not fit shows before the first long evaluation
    own = getattr(bare, "vocabulary", None)
    trains = any(parameter.requires_grad for parameter in bare.parameters())
    built = [_build(data_set, own if trains else None) for data_set in todo]
    results: dict[str, Any] = {}
    with evaluation_weights(own_hooks, bare):
        for number, (loader, evaluator, vocabulary) in enumerate(built, start=1):
            with _asked_for(bare, vocabulary):
                found = inference_on_dataset(bare, loader, evaluator)
            if comm.is_main_process():
                _add(results, todo[number - 1], found)
                _check_names(results, todo[number:])
                write_results(
                    Path(cfg.train.output_dir) / RESULTS_FILE,
                    results,
                    vocabulary=own if isinstance(own, Vocabulary) else None,
                    weights=bare.state_dict(),
                    text=text_origin(bare),
                    seed=cfg.train.seed,
                    data_sets={d.name: b[2] for d, b in zip(todo, built, strict=True) if b[2]},
                    unfinished=[data_set.name for data_set in todo[number:]],
                )
    return results


def text_origin(model: nn.Module) -> dict[str, str | None] | None:
    """What embeds the words of a model; None where it has a text tower among its weights."""
    embedder = getattr(model, "embedder", None)
    return embedder.origin if isinstance(embedder, VocabularyEmbedder) else None


def _build(data_set: DataSet, trained: Vocabulary | None) -> tuple[Any, Any, Vocabulary | None]:
    """The loader, the evaluator, and the vocabulary that the model is to be asked for."""
    evaluator, vocabulary = data_set.part("evaluator"), data_set.vocabulary_after(trained)
    if vocabulary is not None and isinstance(evaluator, OpenVocabularyEvaluator):
        evaluator.set_seen(vocabulary.seen)
    return data_set.part("test"), evaluator, vocabulary


@contextmanager
def _asked_for(model: nn.Module, vocabulary: Vocabulary | None) -> Iterator[None]:
    """Let the model have a vocabulary, and then its own again."""
    if vocabulary is None:
        yield
        return
    changeable: Any = model
    own = changeable.vocabulary
    changeable.set_vocabulary(vocabulary)
    try:
        yield
    finally:
        changeable.set_vocabulary(own)


def _add(results: dict[str, Any], data_set: DataSet, found: dict[str, Any]) -> None:
    if data_set.name:
        logger.info("Results on %s:", data_set.name)
    print_csv_format(found)
    results.update({data_set.name: dict(found)} if data_set.name else found)


def _check_names(results: dict[str, Any], todo: Sequence[DataSet]) -> None:
    for data_set in todo:
        if data_set.name in results:
            raise ConfigError(
                f"{data_set.key} has the name of what dataloader.evaluator reports; rename it"
            )
