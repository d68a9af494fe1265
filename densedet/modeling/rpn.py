"""RPN head with normalisation."""

from typing import Any

from detectron2.layers import Conv2d, get_norm
from detectron2.modeling.proposal_generator.rpn import RPN_HEAD_REGISTRY, StandardRPNHead


@RPN_HEAD_REGISTRY.register()
class NormRPNHead(StandardRPNHead):
    """`StandardRPNHead` with a norm after each hidden convolution, as F-ViT uses on OV-LVIS.

    Args:
        norm: Detectron2 norm name; "" keeps the biases of `StandardRPNHead` instead.
        **kwargs: as of `StandardRPNHead`.
    """

    def __init__(self, *, norm: str = "SyncBN", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not norm:
            return
        convolutions = [self.conv] if isinstance(self.conv, Conv2d) else list(self.conv)
        for convolution in convolutions:
            convolution.bias = None
            convolution.norm = get_norm(norm, convolution.out_channels)
