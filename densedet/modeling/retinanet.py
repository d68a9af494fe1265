"""Parts of RetinaNet where mmdetection, and with it DenseCLIP's detectors, differs."""

from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.matcher import Matcher
from torch import Tensor


class P6P7(LastLevelP6P7):
    """The two coarsest levels, made of a backbone's feature.

    Without an activation between the two, as the published code of DenseCLIP (arXiv 2112.01518)
    has them.

    Args:
        in_channels: of the feature; with guidance those of the score map too.
        out_channels: of both levels.
        in_feature: name of the feature.
        relu: put a ReLU between them, as Detectron2's `LastLevelP6P7` does.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        in_feature: str = "res5",
        relu: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, in_feature)
        self.relu = relu

    def forward(self, feature: Tensor) -> list[Tensor]:
        """Feature ``[B, C, h, w]`` to levels of half and a quarter of its size."""
        if self.relu:
            return super().forward(feature)
        p6 = self.p6(feature)
        return [p6, self.p7(p6)]


class ReassigningMatcher(Matcher):
    """`Matcher` whose low-quality matches get the box they were matched for.

    A box takes the anchors that overlap it most, whatever the thresholds. Detectron2 marks such an
    anchor as positive and leaves it with the box that it overlaps most itself; mmdetection, on
    which the published code of DenseCLIP builds, gives it to the first box, or to the last of
    several.
    """

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """See `Matcher`: ``[M, N]`` qualities to ``[N]`` indices of boxes, and ``[N]`` labels."""
        matches, labels = super().__call__(match_quality_matrix)
        if self.allow_low_quality_matches and match_quality_matrix.numel():
            best = match_quality_matrix.amax(dim=1, keepdim=True)
            boxes, anchors = (match_quality_matrix == best).nonzero(as_tuple=True)
            last = matches.new_full(matches.shape, -1).scatter_reduce(0, anchors, boxes, "amax")
            matches = matches.where(last < 0, last)
        return matches, labels
