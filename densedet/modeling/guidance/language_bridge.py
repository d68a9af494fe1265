"""The language bridge: image and text features meet in two directions, on any backbone.

"CLIP for Lightweight Semantic Segmentation" (arXiv 2310.07394) states the idea: after the two
encoders, a CNN branch on the image features and a transformer branch on the class embeddings, and
between them a bridge both ways. The sizes, the form of the attention and the losses here are ours.
"""

from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from densedet.errors import ConfigError
from densedet.modeling.checks import check_positive
from densedet.modeling.guidance.base import Guided
from densedet.modeling.guidance.bridge_blocks import (
    BridgeBlock,
    BridgeMode,
    conv_norm,
    text_from_image,
)
from densedet.modeling.guidance.prompted import PromptedGuidance
from densedet.modeling.guidance.prompts import PromptedTextEncoder
from densedet.modeling.guidance.scores import score_map


@dataclass
class Bridged(Guided):
    """`Guided` with the scores after each block but the last, for deep supervision.

    Attributes:
        early_scores: each [B, K, h, w]; empty unless they are supervised.
    """

    early_scores: list[Tensor]


class LanguageBridge(PromptedGuidance):
    """Fuses one level of a backbone with the class embeddings and hands both to the neck.

    The level gets the fused features and the score map as further channels. The backbone need not
    be aligned with the text tower, and the tower sees no image: its embeddings are computed once
    in evaluation.

    Args:
        text: the prompted text tower.
        auxiliary: `PixelScoreLoss` or `BoxScoreLoss` on the scores; None for no loss.
        channels: of the level.
        embed_dim: E, of the text tower.
        visual_dim: channels of the CNN branch and of the attention between the branches.
        text_dim: channels of the transformer branch.
        blocks: how often the branches exchange.
        heads: of the attention between the branches.
        self_heads: of the attention among the names.
        expansion: hidden channels of the CNN branch over ``visual_dim``.
        ffn_ratio: hidden channels of the transformer's MLP over ``text_dim``.
        mode: the directions of the bridge: "none", "v2t" (image to text), "t2v" (text to image),
            "two_way", or "two_way_full" with all projections of the attention.
        closing: in the modes with image to text, let the names look once more after the last
            block.
        level: what is fused.
        temperature: the scores are divided by it for the loss.
        gamma: initial value of the learned factors of what the bridge adds to the text.
        deep_supervision: average the loss over the scores of every block.
        norm: Detectron2 norm name of the CNN branch.

    Raises:
        ConfigError: no such mode, sizes that do not fit, a number of channels, heads or blocks, a
            ratio or a temperature that is not above 0, or deep supervision without a loss.
    """

    def __init__(
        self,
        text: PromptedTextEncoder,
        auxiliary: nn.Module | None,
        *,
        channels: int,
        embed_dim: int,
        visual_dim: int = 256,
        text_dim: int = 256,
        blocks: int = 2,
        heads: int = 2,
        self_heads: int = 4,
        expansion: int = 2,
        ffn_ratio: int = 2,
        mode: BridgeMode = "two_way",
        closing: bool = True,
        level: str = "res5",
        temperature: float = 0.07,
        gamma: float = 1e-4,
        deep_supervision: bool = False,
        norm: str = "BN",
    ) -> None:
        super().__init__(text, auxiliary, temperature)
        _check(text, auxiliary, embed_dim, deep_supervision)
        check_positive(
            "language bridge",
            channels=channels,
            visual_dim=visual_dim,
            text_dim=text_dim,
            blocks=blocks,
            temperature=temperature,
        )
        self.embed_dim = None  # reads the levels alone
        self.channels = channels
        self.visual_dim = visual_dim
        self.level = level
        self.deep_supervision = deep_supervision
        self.visual_in = conv_norm(channels, visual_dim, norm, kernel_size=1)
        self.text_in = nn.Sequential(nn.LayerNorm(embed_dim), nn.Linear(embed_dim, text_dim))
        self.blocks = nn.ModuleList(
            BridgeBlock(
                visual_dim,
                text_dim,
                heads=heads,
                self_heads=self_heads,
                expansion=expansion,
                ffn_ratio=ffn_ratio,
                mode=mode,
                norm=norm,
            )
            for _ in range(blocks)
        )
        self.closing = text_from_image(visual_dim, text_dim, heads, mode) if closing else None
        self.text_out = nn.Linear(text_dim, embed_dim)
        self.gamma = nn.Parameter(torch.full((embed_dim,), gamma))
        self.visual_out = nn.Conv2d(visual_dim, embed_dim, 1)

    @property
    def extra_channels(self) -> dict[str, int]:
        """The fused features and the scores, at the fused level."""
        return {self.level: self.visual_dim + len(self.vocabulary)}

    @property
    def level_channels(self) -> dict[str, int]:
        """Those of the fused level."""
        return {self.level: self.channels}

    def forward(
        self, features: dict[str, Tensor], dense: Tensor | None, pooled: Tensor | None
    ) -> Bridged:
        """Guide the features of a trunk; the embeddings are not read. See `Guidance.forward`."""
        level, plain = features[self.level], self.text()
        visual, names = self.visual_in(level), self.text_in(plain).expand(len(level), -1, -1)
        early = []
        for number, block in enumerate(self.blocks, start=1):
            visual, names = block(visual, names)
            if self.training and self.deep_supervision and number < len(self.blocks):
                early.append(self._compare(visual, names, plain)[0])
        if self.closing is not None:
            names = self.closing(names, visual)
        scores, text = self._compare(visual, names, plain)
        fused = torch.cat([level, visual.to(level.dtype), scores.to(level.dtype)], dim=1)
        return Bridged({**features, self.level: fused}, scores, text, early)

    def _compare(self, visual: Tensor, names: Tensor, plain: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B, K, h, w] and refined text [B, P, E] of the state of both branches."""
        text = plain + self.gamma * self.text_out(names)
        dense = self.visual_out(visual)
        return score_map(dense, text, self.text.groups, len(self.vocabulary)), text

    def losses(self, guided: Guided, targets: Tensor | list[Instances]) -> dict[str, Tensor]:
        """The mean of the auxiliary losses of all scores; see `Guidance.losses`."""
        early = guided.early_scores if isinstance(guided, Bridged) else []
        maps = [*early, guided.scores]
        losses = [self._auxiliary_loss(scores, guided, targets) for scores in maps]
        return {name: torch.stack([loss[name] for loss in losses]).mean() for name in losses[0]}


def _check(
    text: PromptedTextEncoder,
    auxiliary: nn.Module | None,
    embed_dim: int,
    deep_supervision: bool,
) -> None:
    if text.embed_dim != embed_dim:
        raise ConfigError(
            f"the text tower embeds in {text.embed_dim} dimensions, the language bridge in "
            f"{embed_dim}: set embed_dim to that of the text tower"
        )
    if deep_supervision and auxiliary is None:
        raise ConfigError("deep_supervision needs an auxiliary loss")
