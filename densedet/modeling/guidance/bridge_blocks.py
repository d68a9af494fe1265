"""The blocks of the language bridge: two branches and the attention that joins them.

After Mobile-Former (arXiv 2108.05895), with the embeddings of class names in place of its learned
tokens. Of the paper of the bridge (arXiv 2310.07394) only the abstract was at hand; the form is
ours.
"""

from typing import Literal

import torch.nn.functional as F
from detectron2.layers import Conv2d, get_norm
from torch import Tensor, nn

from densedet.errors import ConfigError
from densedet.modeling.checks import check_choice, check_positive
from densedet.modeling.guidance.decoder import attend

BridgeMode = Literal["none", "v2t", "t2v", "two_way", "two_way_full"]


class BridgeAttention(nn.Module):
    """Multi-head attention that may leave out projections; no biases.

    A left-out projection takes the features as they are, so that it costs nothing: with many
    locations and few names, Mobile-Former keeps the projections of the tokens alone. The softmax
    is in fp32 under autocast too, as in every implementation of torch's fused attention.

    Args:
        query_dim: channels of the queries and of the output.
        memory_dim: channels of what they look at.
        width: channels inside; what is not projected must have as many.
        heads: they divide the width.
        projected: which of "q", "k", "v" and "o", the output, have projections.

    Raises:
        ConfigError: the heads do not divide the width.
    """

    def __init__(
        self, query_dim: int, memory_dim: int, width: int, heads: int, projected: str = "qkvo"
    ) -> None:
        super().__init__()
        if width % heads:
            raise ConfigError(f"{heads} heads do not divide an attention {width} wide")
        self.heads = heads
        sizes = {
            "q": (query_dim, width),
            "k": (memory_dim, width),
            "v": (memory_dim, width),
            "o": (width, query_dim),
        }
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(*size, bias=False) if name in projected else nn.Identity()
            for name, size in sizes.items()
        )

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        """Queries [B, Q, query_dim] that look at [B, M, memory_dim] -> [B, Q, query_dim]."""
        projected = self.q_proj(queries), self.k_proj(memory), self.v_proj(memory)
        return self.out_proj(attend(*projected, self.heads))


class TextFromImage(nn.Module):
    """The names look at the image: residual, then layer norm.

    Args:
        text_dim: channels of the names.
        visual_dim: channels of the locations.
        heads: of the attention.
        projected: see `BridgeAttention`.
    """

    def __init__(self, text_dim: int, visual_dim: int, heads: int, projected: str) -> None:
        super().__init__()
        self.attention = BridgeAttention(text_dim, visual_dim, visual_dim, heads, projected)
        self.norm = nn.LayerNorm(text_dim)

    def forward(self, text: Tensor, visual: Tensor) -> Tensor:
        """Names [B, P, text_dim] after a look at [B, visual_dim, h, w]."""
        return self.norm(text + self.attention(text, visual.flatten(2).transpose(1, 2)))


class TextLayer(nn.Module):
    """A post-norm transformer layer over the names, which are a set: there are no positions.

    Args:
        width: channels.
        heads: of the self-attention.
        ffn_ratio: hidden channels of the MLP over its channels.
    """

    def __init__(self, width: int, heads: int, ffn_ratio: int) -> None:
        super().__init__()
        self.attention = BridgeAttention(width, width, width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, ffn_ratio * width), nn.GELU(), nn.Linear(ffn_ratio * width, width)
        )
        self.norm2 = nn.LayerNorm(width)

    def forward(self, text: Tensor) -> Tensor:
        """[B, P, width] -> [B, P, width]."""
        text = self.norm1(text + self.attention(text, text))
        return self.norm2(text + self.ffn(text))


def conv_norm(
    inside: int, outside: int, norm: str, activation: bool = True, **kwargs: int
) -> nn.Module:
    """A convolution, a norm by Detectron2's name ("" for none but a bias), perhaps ReLU."""
    return Conv2d(
        inside,
        outside,
        bias=not norm,
        norm=get_norm(norm, outside),
        activation=F.relu if activation else None,
        **kwargs,
    )


class InvertedBottleneck(nn.Sequential):
    """1x1 to more channels, depth-wise 3x3, 1x1 back; the caller adds the residual.

    Args:
        width: channels.
        expansion: hidden channels over these.
        norm: Detectron2 norm name after every convolution; "" for none.
    """

    def __init__(self, width: int, expansion: int, norm: str) -> None:
        hidden = expansion * width
        super().__init__(
            conv_norm(width, hidden, norm, kernel_size=1),
            conv_norm(hidden, hidden, norm, kernel_size=3, padding=1, groups=hidden),
            conv_norm(hidden, width, norm, activation=False, kernel_size=1),
        )


class BridgeBlock(nn.Module):
    """One exchange: text from image, transformer on text, CNN on image, image from text.

    Args:
        visual_dim: channels of the locations.
        text_dim: channels of the names.
        heads: of the attention between the branches, which is ``visual_dim`` wide.
        self_heads: of the attention among names.
        expansion: of the inverted bottleneck.
        ffn_ratio: of the transformer's MLP.
        mode: "none" leaves out both directions, "v2t" that to the image, "t2v" that to the text;
            "two_way_full" also projects the locations.
        norm: Detectron2 norm name of the CNN.

    Raises:
        ConfigError: no such mode, a number below 1, or heads that do not divide their width.
    """

    def __init__(
        self,
        visual_dim: int,
        text_dim: int,
        *,
        heads: int = 2,
        self_heads: int = 4,
        expansion: int = 2,
        ffn_ratio: int = 2,
        mode: BridgeMode = "two_way",
        norm: str = "BN",
    ) -> None:
        super().__init__()
        check_positive(
            "language bridge",
            visual_dim=visual_dim,
            text_dim=text_dim,
            heads=heads,
            self_heads=self_heads,
            expansion=expansion,
            ffn_ratio=ffn_ratio,
        )
        self.to_text = text_from_image(visual_dim, text_dim, heads, mode)
        self.transformer = TextLayer(text_dim, self_heads, ffn_ratio)
        self.conv = InvertedBottleneck(visual_dim, expansion, norm)
        self.to_image: BridgeAttention | None = None
        if mode not in ("none", "v2t"):
            projected = "qkvo" if mode == "two_way_full" else "kv"
            self.to_image = BridgeAttention(visual_dim, text_dim, visual_dim, heads, projected)

    def forward(self, visual: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Locations [B, visual_dim, h, w] and names [B, P, text_dim], both changed."""
        if self.to_text is not None:
            text = self.to_text(text, visual)
        text = self.transformer(text)
        visual = visual + self.conv(visual)
        if self.to_image is not None:
            message = self.to_image(visual.flatten(2).transpose(1, 2), text)
            visual = visual + message.transpose(1, 2).unflatten(2, visual.shape[-2:])
        return visual, text


def text_from_image(
    visual_dim: int, text_dim: int, heads: int, mode: BridgeMode
) -> TextFromImage | None:
    """The step in which names look at the image; None in the modes without it.

    Raises:
        ConfigError: no such mode, or heads that do not divide the width.
    """
    check_choice("language bridge mode", mode, BridgeMode)
    if mode in ("none", "t2v"):
        return None
    return TextFromImage(text_dim, visual_dim, heads, "qkvo" if mode == "two_way_full" else "qo")
