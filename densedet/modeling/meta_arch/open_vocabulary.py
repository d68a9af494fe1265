"""What models share whose classes are a vocabulary, replaceable at any time."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from torch import nn

from densedet.clip import ClassEmbeddings
from densedet.vocabulary import Vocabulary


class OpenVocabularyModel(nn.Module, ABC):
    """Holds a vocabulary and embeds it when it is needed; stands before a Detectron2 model.

    Args:
        vocabulary: the classes to start with; in training, labels are indices into it.
        embedder: turns a vocabulary into class embeddings (a `VocabularyEmbedder`). It is called
            at the first forward pass after a change, so that building a model costs no text tower.
        **kwargs: of the next class.
    """

    def __init__(
        self,
        *,
        vocabulary: Vocabulary,
        embedder: Callable[[Vocabulary], ClassEmbeddings],
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.embedder = embedder
        self.set_vocabulary(vocabulary)

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes that results refer to, by their indices in it."""
        return self._vocabulary

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Find these classes from now on; no weight changes."""
        self._vocabulary = vocabulary
        self._embedded = False

    def _embed_vocabulary(self) -> None:
        if not self._embedded:
            self.set_classes(self.embedder(self._vocabulary))
            self._embedded = True

    @abstractmethod
    def set_classes(self, embeddings: ClassEmbeddings) -> None:
        """Hand the embeddings of the vocabulary to the heads; every model says how."""
