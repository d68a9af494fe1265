"""Class embeddings of a vocabulary, with a disk cache that is keyed by content."""

import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from densedet.clip.factory import create_text_encoder, weights_identity
from densedet.clip.precision import full_precision
from densedet.clip.text import TEXT_TOWER_VERSION, TextEncoder
from densedet.clip.tokens import warn_of_cut
from densedet.errors import CheckpointError, OutputError, VocabularyError
from densedet.vocabulary import TEMPLATE_SETS, Vocabulary
from densedet.weights import SHA256, read_safetensors, write_safetensors

BACKGROUND = "background"
CACHE_VARIABLE = "DENSEDET_CACHE"
_CUT, _LENGTH = "cut", "context_length"
_TENSORS = ("vectors", "groups", "background")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassEmbeddings:
    """A vocabulary in the space of a CLIP.

    Attributes:
        vectors: ``[P, D]`` fp32, a unit row for every synonym.
        groups: ``[P]`` int64, the category of every row; a category scores the maximum of its rows.
        background: ``[D]`` fp32, the unit vector of the word for background in the same templates,
            or zeros where there is none.
    """

    vectors: Tensor
    groups: Tensor
    background: Tensor

    def to(self, device: torch.device | str) -> "ClassEmbeddings":
        """The same on another device."""
        moved = (t.to(device) for t in (self.vectors, self.groups, self.background))
        return ClassEmbeddings(*moved)


class VocabularyEmbedder:
    """Makes class embeddings; the text tower is built only when the cache has no answer.

    A cache file is named by the digest of (weights, vocabulary, template set, version of the text
    tower) and says the same inside; one that does not is refused, never used. Random weights are
    reproducible and never cached on disk.
    """

    def __init__(
        self,
        model: str,
        pretrained: str | None = None,
        templates: str = "clipself63",
        cache_dir: str | os.PathLike[str] | None = None,
        background: str | None = BACKGROUND,
    ) -> None:
        """Choose a text tower.

        Args:
            model: see :func:`densedet.clip.factory.create_clip`.
            pretrained: likewise.
            templates: a template set of :mod:`densedet.vocabulary`.
            cache_dir: folder of the cache; None for :func:`default_cache_dir`.
            background: the word that stands for background; None gives a vector of zeros, for heads
                that learn their own.

        Raises:
            VocabularyError: there is no such template set.
        """
        if templates not in TEMPLATE_SETS:
            raise VocabularyError(
                f"no template set {templates!r}; there are: {', '.join(TEMPLATE_SETS)}"
            )
        self.model = model
        self.pretrained = pretrained
        self.templates = templates
        self.background = background
        self.cache_dir = default_cache_dir() if cache_dir is None else Path(cache_dir)

    def __call__(self, vocabulary: Vocabulary) -> ClassEmbeddings:
        """Embed a vocabulary in fp32; no gradient, usable in training and in inference mode.

        Raises:
            CheckpointError: the weights cannot be had, or a cache file is of another model.
            VocabularyError: two categories are the same after their names are cut.
        """
        # Tensors (and a tower) made in inference mode could not take part in training later.
        with torch.inference_mode(False), torch.no_grad():
            path = self.cache_path(vocabulary)
            if path is not None and path.is_file():
                return read_class_embeddings(path, self._content(vocabulary))
            with full_precision(next(self.encoder.parameters()).device):
                embeddings = self._embed(vocabulary)
            if path is not None:
                self._store(path, embeddings, vocabulary)
            return embeddings

    def cache_path(self, vocabulary: Vocabulary) -> Path | None:
        """Where the embeddings of a vocabulary are cached; None where nothing is."""
        if self._weights is None or self.cache_dir is None:
            return None
        content = json.dumps(self._content(vocabulary), sort_keys=True)
        key = hashlib.sha256(content.encode()).hexdigest()[:20]
        return self.cache_dir / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', self.model)}-{key}.safetensors"

    @cached_property
    def encoder(self) -> TextEncoder:
        """The text tower, built at first use without touching torch's global random state."""
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(0)  # torch.manual_seed seeds CUDA's too
            return create_text_encoder(self.model, self.pretrained).requires_grad_(False)

    @cached_property
    def _weights(self) -> str | None:
        return weights_identity(self.model, self.pretrained)

    @property
    def origin(self) -> dict[str, str | None]:
        """What embeds a vocabulary; "weights", digest or tag, is None if they are random."""
        return {
            "model": self.model,
            "weights": self._weights,
            "templates": self.templates,
            "background": self.background,
        }

    def _content(self, vocabulary: Vocabulary) -> dict[str, str]:
        return {
            "weights": self._weights or "",
            "vocabulary": vocabulary.digest(),
            "templates": self.templates,
            "text_tower_version": str(TEXT_TOWER_VERSION),
            "names": json.dumps(vocabulary.synonyms),
            "background": json.dumps(self.background),
        }

    def _embed(self, vocabulary: Vocabulary) -> ClassEmbeddings:
        vectors = self.encoder.embed_names(vocabulary.synonyms, self.templates, vocabulary.groups)
        groups = torch.tensor(vocabulary.groups, dtype=torch.int64)
        background = torch.zeros_like(vectors[0])
        if self.background is not None:
            background = self.encoder.embed_names([self.background], self.templates)[0]
        return ClassEmbeddings(vectors, groups, background)

    def _store(self, path: Path, embeddings: ClassEmbeddings, vocabulary: Vocabulary) -> None:
        tensors = {name: getattr(embeddings, name) for name in _TENSORS}
        cut = dict(self.encoder.cut(vocabulary.synonyms, self.templates))
        notes = {_CUT: json.dumps(cut), _LENGTH: str(self.encoder.context_length)}
        try:
            write_safetensors(path, tensors, {**self._content(vocabulary), **notes})
        except OutputError as error:
            _LOG.warning("class embeddings are not cached: %s", error)


def default_cache_dir() -> Path | None:
    """``$DENSEDET_CACHE`` (empty: no cache), else ``densedet`` in the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen is not None:
        return Path(chosen) / "class_embeddings" if chosen else None
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "densedet" / "class_embeddings"


def read_class_embeddings(
    path: str | os.PathLike[str], expected: dict[str, str]
) -> ClassEmbeddings:
    """Read a cache file if its metadata is exactly ``expected``.

    Names that were cut when it was made are named in a warning again.

    Raises:
        CheckpointError: the file is damaged, or of another model, vocabulary or template set.
    """
    remedy = "delete the file to have it made again"
    try:
        content, found = read_safetensors(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: damaged vocabulary cache ({error}); {remedy}") from error
    different = [name for name, value in expected.items() if found.get(name) != value]
    if different:
        raise CheckpointError(
            f"{path}: vocabulary cache of another model or vocabulary "
            f"(different {', '.join(different)}); {remedy}"
        )
    if not {SHA256, _LENGTH} <= found.keys() or not {*_TENSORS} <= content.keys():
        raise CheckpointError(f"{path}: damaged vocabulary cache (no {SHA256}); {remedy}")
    cut = json.loads(found.get(_CUT, "{}"))
    warn_of_cut({name: (kept, words) for name, (kept, words) in cut.items()}, int(found[_LENGTH]))
    return ClassEmbeddings(*(content[name] for name in _TENSORS))
