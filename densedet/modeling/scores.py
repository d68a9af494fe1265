"""What the comparisons of image and text share: precision, and synonyms."""

from torch import Tensor


def max_over_groups(scores: Tensor, groups: Tensor, count: int) -> Tensor:
    """The maximum of each group, e.g. over the synonyms of a category.

    Args:
        scores: [B, P, ...].
        groups: [P] int64, the group of every column; each of 0 .. count - 1 has one at least.
        count: K.

    Returns:
        [B, K, ...].
    """
    start = scores.new_zeros(len(scores), count, *scores.shape[2:])
    index = groups.view(-1, *[1] * (scores.ndim - 2)).expand_as(scores)
    return start.scatter_reduce(1, index, scores, reduce="amax", include_self=False)
