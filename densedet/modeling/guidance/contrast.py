"""A contrastive loss whose samples the score map chooses, for ICPC (arXiv 2308.07078)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densedet.clip.precision import full_precision
from densedet.errors import ConfigError
from densedet.modeling.checks import check_choice

ContrastMode = Literal["t2p", "t2p+p2p", "p2p", "weighted_p2t"]


class AlignGuidedContrast(nn.Module):
    """Pulls locations to the text of their category where the score map is wrong.

    ICPC (arXiv 2308.07078) names an align-guided contrastive loss; sampling, terms and numbers are
    our design. A category of an image counts from ``min_pixels`` locations on. The positives P are
    locations of it: half those that score it lowest, half random. The negatives Q are locations of
    other categories in the image: half those that score it highest, half random. With fewer
    locations than asked for, all are taken.

    - "t2p": for every category the text chooses among locations,
      ``-mean_P log(e^p / (e^p + sum_Q e^q))`` of the cosines over the temperature, then the mean
      over categories and images. Without negatives it is 0.
    - "p2p": supervised contrast between the positives of the batch as in "Exploring Cross-Image
      Pixel Contrast" (arXiv 2101.11939): every pair of one category against all pairs of the first
      with other categories; of more than ``max_anchors`` positives, a random choice.
    - "t2p+p2p": their sum.
    - "weighted_p2t": every location chooses among texts; cross-entropy times ``1 - p`` of its
      category, the mean over all labelled locations, without sampling.

    Args:
        mode: the terms.
        temperature: divides the cosines.
        weight: factor of the loss.
        num_positives: most positives of a category and image.
        num_negatives: most negatives of a category and image.
        min_pixels: fewest locations of a category in an image.
        max_anchors: most positives of a batch in "p2p", whose memory grows with their square.

    Raises:
        ConfigError: no such mode, or a number that is not positive.
    """

    def __init__(
        self,
        mode: ContrastMode = "t2p+p2p",
        *,
        temperature: float = 0.1,
        weight: float = 0.1,
        num_positives: int = 32,
        num_negatives: int = 256,
        min_pixels: int = 4,
        max_anchors: int = 1024,
    ) -> None:
        super().__init__()
        check_choice("contrast mode", mode, ContrastMode)
        self.mode = mode
        self.temperature = temperature
        self.weight = weight
        self.num_positives = num_positives
        self.num_negatives = num_negatives
        self.min_pixels = min_pixels
        self.max_anchors = max_anchors
        numbers = ("temperature", "num_positives", "num_negatives", "min_pixels", "max_anchors")
        for name in numbers:
            if getattr(self, name) <= 0:
                raise ConfigError(f"contrast {name}={getattr(self, name)}: it must be positive")

    def forward(self, locations: Tensor, scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Contrast the locations of one level.

        Args:
            locations: [B, E, h, w] embeddings, not normalised.
            scores: [B, K, h, w] their cosines with the categories.
            labels: int64 [B, H, W], of which the nearest to every location counts; labels that are
                no category, such as 255 and 65535, take no part.

        Returns:
            ``{"loss_contrast": scalar}`` in fp32, also under autocast; 0 with a gradient of zeros
            where nothing can be contrasted.
        """
        with full_precision(locations.device):
            vectors = F.normalize(locations.float(), dim=1).flatten(2).transpose(1, 2)
            cosines = scores.float().flatten(2)
            classes = _nearest(labels, (scores.shape[2], scores.shape[3])).flatten(1)
            if self.mode == "weighted_p2t":
                loss = self._weighted_p2t(cosines, classes)
            else:
                loss = self._contrast(vectors, cosines, classes)
            return {"loss_contrast": self.weight * loss + 0.0 * (vectors.sum() + cosines.sum())}

    def _weighted_p2t(self, cosines: Tensor, classes: Tensor) -> Tensor:
        valid = (classes >= 0) & (classes < cosines.shape[1])
        costs = F.cross_entropy(
            cosines / self.temperature, classes.where(valid, -100), reduction="none"
        )
        # exp(-cost) is the probability of the category; ignored locations cost 0
        costs = costs * (1 - (-costs.detach()).exp())
        return costs.sum() / valid.sum().clamp(min=1)

    def _contrast(self, vectors: Tensor, cosines: Tensor, classes: Tensor) -> Tensor:
        """The terms of vectors [B, N, E], cosines [B, K, N] and classes [B, N]."""
        images, present = self._present(classes, cosines.shape[1]).unbind(1)
        rows, of_image = cosines[images, present], classes[images]
        guide = rows.detach()
        same = of_image == present[:, None]
        other = ~same & (of_image >= 0) & (of_image < cosines.shape[1])
        positives, is_positive = guided_samples(same, -guide, self.num_positives)
        loss = cosines.new_zeros(())
        if "t2p" in self.mode and len(present):
            negatives, is_negative = guided_samples(other, guide, self.num_negatives)
            costs = contrast_rows(
                rows.gather(1, positives) / self.temperature,
                rows.gather(1, negatives) / self.temperature,
                is_negative,
            )
            loss = loss + ((costs * is_positive).sum(1) / is_positive.sum(1)).mean()
        if "p2p" in self.mode:
            anchors = vectors[images[:, None], positives][is_positive]
            anchored = present[:, None].expand_as(positives)[is_positive]
            loss = loss + self._p2p(anchors, anchored)
        return loss

    def _present(self, classes: Tensor, num_classes: int) -> Tensor:
        """[M, 2]: the images and their categories of at least ``min_pixels`` locations."""
        index = classes.where((classes >= 0) & (classes < num_classes), num_classes)
        counts = classes.new_zeros(len(classes), num_classes + 1)
        counts.scatter_add_(1, index, torch.ones_like(index))
        return (counts[:, :-1] >= self.min_pixels).nonzero()

    def _p2p(self, anchors: Tensor, classes: Tensor) -> Tensor:
        """Supervised contrast between unit vectors [A, E] of classes [A]."""
        if len(anchors) > self.max_anchors:
            kept = torch.randperm(len(anchors), device=anchors.device)[: self.max_anchors]
            anchors, classes = anchors[kept], classes[kept]
        logits = anchors @ anchors.T / self.temperature
        same = classes[:, None] == classes
        pairs = same & ~torch.eye(len(classes), dtype=torch.bool, device=classes.device)
        costs = contrast_rows(logits, logits, ~same)
        means = (costs * pairs).sum(1) / pairs.sum(1).clamp(min=1)
        return means.sum() / pairs.any(1).sum().clamp(min=1)


def contrast_rows(positives: Tensor, negatives: Tensor, is_negative: Tensor) -> Tensor:
    """Costs ``-log(e^p / (e^p + sum e^q))`` of every positive against all negatives of its row.

    Args:
        positives: [M, P] logits.
        negatives: [M, Q] logits.
        is_negative: bool [M, Q], which of the negatives there are.

    Returns:
        [M, P]; 0 in a row without negatives.
    """
    lowest = torch.finfo(negatives.dtype).min  # finite: -inf would make gradients NaN
    total = negatives.masked_fill(~is_negative, lowest).logsumexp(dim=1, keepdim=True)
    return F.softplus(total - positives)


def guided_samples(candidates: Tensor, hardness: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Choose up to ``count`` candidates of every row: half the hardest, the others at random.

    Args:
        candidates: bool [M, N].
        hardness: [M, N].
        count: how many; all candidates of a row that has no more.

    Returns:
        int64 [M, n] indices into the rows, n = min(count, N), and bool [M, n]: which of them are
        candidates, the others fill short rows up.
    """
    size = candidates.shape[1]
    ranked = hardness.masked_fill(~candidates, -torch.inf)
    hardest = ranked.topk(min(count // 2, size), dim=1).indices
    keys = torch.rand_like(hardness).scatter(1, hardest, 2.0)
    keys = keys.masked_fill(~candidates, -1.0)
    values, indices = keys.topk(min(count, size), dim=1)
    return indices, values >= 0


def _nearest(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels [B, H, W] at the centres of a grid: [B, h, w]."""
    grid = F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")
    return grid[:, 0].long()  # fp32 holds integers up to 2 ** 24
