"""Classification by comparison with class embeddings, and the ensembling of two such scores."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densedet.clip import ClassEmbeddings
from densedet.clip.precision import full_precision
from densedet.errors import VocabularyError
from densedet.modeling.scores import max_over_groups


class CosineClassifier(nn.Module):
    """``t * cos(u, E)`` over K classes and background; the classes can be replaced at any time.

    A class with several synonyms scores the maximum over them. The class embeddings are buffers
    that checkpoints do not hold: a trained head belongs to no vocabulary.

    Args:
        embed_dim: D, the dimension of the embeddings.
        temperature: initial value of the learned factor t, used as is (F-ViT: CLIPSelf,
            arXiv 2310.01403; its initial value is 50).
        background: "text" compares with the embedding of the word "background", "learned" with a
            trained vector.
    """

    vectors: Tensor
    groups: Tensor
    text_background: Tensor
    unseen: Tensor

    def __init__(self, embed_dim: int, temperature: float = 50.0, background: str = "text") -> None:
        super().__init__()
        if background not in ("text", "learned"):
            raise ValueError(f'background must be "text" or "learned", not {background!r}')
        self.embed_dim = embed_dim
        self.num_classes = 0
        self._row_per_class = True
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))
        self.learned_background: nn.Parameter | None = None
        if background == "learned":
            self.learned_background = nn.Parameter(torch.randn(embed_dim) * embed_dim**-0.5)
        self.register_buffer("vectors", torch.zeros(0, embed_dim), persistent=False)
        self.register_buffer("groups", torch.zeros(0, dtype=torch.int64), persistent=False)
        self.register_buffer("text_background", torch.zeros(embed_dim), persistent=False)
        self.register_buffer("unseen", torch.zeros(0, dtype=torch.bool), persistent=False)

    def set_classes(self, embeddings: ClassEmbeddings, seen: tuple[bool, ...]) -> None:
        """Compare with these classes from now on.

        Args:
            embeddings: P unit rows and the class of each.
            seen: per class, whether training has labels of it (K values).

        Raises:
            VocabularyError: the embeddings have another dimension than the head, or belong to
                another number of classes than ``seen``.
        """
        if embeddings.vectors.shape[1] != self.embed_dim:
            raise VocabularyError(
                f"class embeddings have {embeddings.vectors.shape[1]} dimensions, "
                f"the head has {self.embed_dim}: they come from another CLIP"
            )
        if embeddings.groups.unique().tolist() != list(range(len(seen))):
            raise VocabularyError(
                f"class embeddings are of {len(embeddings.groups.unique())} classes, but "
                f"{len(seen)} are described as seen or unseen: they come from another vocabulary"
            )
        device = self.temperature.device
        # tensors made in inference mode could not take part in training later
        with torch.inference_mode(False):
            self.num_classes = len(seen)
            self._row_per_class = embeddings.groups.tolist() == list(range(len(seen)))
            self.vectors = embeddings.vectors.to(device, torch.float32).clone()
            self.groups = embeddings.groups.to(device).clone()
            self.text_background = embeddings.background.to(device, torch.float32).clone()
            self.unseen = ~torch.tensor(seen, dtype=torch.bool, device=device)

    @property
    def has_text_background(self) -> bool:
        """Whether background is the word's embedding rather than a learned vector."""
        return self.learned_background is None

    def class_cosines(self, embeddings: Tensor) -> Tensor:
        """(R, D) -> (R, K), fp32: cosine with each class, the maximum over its synonyms."""
        cosines = _cosines(embeddings, self.vectors)
        if self._row_per_class:
            return cosines
        return max_over_groups(cosines, self.groups, self.num_classes)

    def pixel_cosines(self, maps: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, K, h, w), fp32: `class_cosines` of every location."""
        locations = maps.movedim(1, -1)
        cosines = self.class_cosines(locations.flatten(0, 2))
        return cosines.unflatten(0, locations.shape[:3]).movedim(-1, 1)

    def background_cosine(self, embeddings: Tensor) -> Tensor:
        """(R, D) -> (R, 1), fp32: cosine with the background vector."""
        background = self.text_background
        if self.learned_background is not None:
            background = F.normalize(self.learned_background, dim=0)
        return _cosines(embeddings, background[None])

    def forward(self, embeddings: Tensor) -> Tensor:
        """Region embeddings (R, D) -> fp32 logits (R, K + 1), background last.

        In training the columns of unseen classes are -inf: they take no part in the softmax.
        """
        logits = self.temperature * self.class_cosines(embeddings)
        if self.training:
            logits = logits.masked_fill(self.unseen, float("-inf"))
        background = self.temperature * self.background_cosine(embeddings)
        return torch.cat([logits, background], dim=1)


def _cosines(embeddings: Tensor, unit_rows: Tensor) -> Tensor:
    """(R, D), (P, D) -> (R, P) in fp32 also under autocast: a factor of 50 follows."""
    with full_precision(embeddings.device):
        return F.normalize(embeddings.float(), dim=-1) @ unit_rows.float().T


class ScoreEnsemble(nn.Module):
    """Geometric mean of a detector's probabilities and those of the dense map.

    ``p^(1-a) q^a`` with ``a = seen`` for classes that training had and for background, and
    ``a = unseen`` for the others; the products are not renormalised (F-ViT: CLIPSelf,
    arXiv 2310.01403).

    Args:
        seen: exponent of the dense probability of seen classes and background.
        unseen: exponent of the dense probability of unseen classes.
        temperature: factor of the cosines of the dense map before the softmax.
    """

    def __init__(self, seen: float, unseen: float, temperature: float) -> None:
        super().__init__()
        for name, value in (("seen", seen), ("unseen", unseen)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"the exponent {name}={value} must lie in 0..1")
        self.seen, self.unseen, self.temperature = seen, unseen, temperature

    def forward(self, log_p: Tensor, dense: Tensor, classifier: CosineClassifier) -> Tensor:
        """Mix log-probabilities (R, K + 1) with dense region embeddings (R, D).

        Where the background is a learned vector, which means nothing to the dense map, q runs over
        the K classes alone and the background keeps p.
        """
        cosines = classifier.class_cosines(dense)
        if classifier.has_text_background:
            cosines = torch.cat([cosines, classifier.background_cosine(dense)], dim=1)
        log_q = F.log_softmax(self.temperature * cosines, dim=1)
        if not classifier.has_text_background:
            log_q = torch.cat([log_q, log_p[:, -1:]], dim=1)
        exponents = torch.where(classifier.unseen, self.unseen, self.seen)
        exponents = torch.cat([exponents, exponents.new_tensor([self.seen])])
        return (1 - exponents) * log_p + exponents * log_q
