"""Prompts that depend on the image: the condition of ICPC (arXiv 2308.07078)."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densedet.errors import ConfigError
from densedet.modeling.checks import check_choice
from densedet.modeling.guidance.decoder import ContextDecoder, image_memory

ConditionMode = Literal["static", "add", "concat", "query"]


class PromptCondition(nn.Module):
    """Makes the contexts of every image from the learned ones and the image.

    ICPC (arXiv 2308.07078) compares static prompts with prompts that follow the image; how the two
    meet is our design. The network of "add" and "concat" has the shape of CoCoOp's
    (arXiv 2203.05557), but its last layer starts at zero, so that "add" starts as "static": bit for
    bit for one image, up to rounding for a batch, whose prompts run through the tower together.

    - "static": the learned contexts, for every image the same.
    - "add": one vector of the image is added to every context, as in CoCoOp.
    - "concat": that vector is one more context, behind the others.
    - "query": the contexts look at the image through a context decoder, as in DenseCLIP's
      pre-model prompting (arXiv 2112.01518).

    Args:
        mode: how contexts and image meet.
        embed_dim: E, of the image embeddings.
        width: W, channels of a context.
        reduction: the network narrows E by this factor inside ("add", "concat").
        detach: no gradient from the prompts into the image embeddings.
        decoder: of "query", with ``width`` as ``query_dim``; None for one with the defaults of
            `ContextDecoder`. Other modes take none.

    Attributes:
        extra_contexts: how many contexts an image gets beyond the N learned ones: 0 or 1.

    Raises:
        ConfigError: no such mode, a reduction that leaves no channel, or a decoder that does not
            fit.
    """

    def __init__(
        self,
        mode: ConditionMode = "add",
        *,
        embed_dim: int,
        width: int,
        reduction: int = 16,
        detach: bool = False,
        decoder: ContextDecoder | None = None,
    ) -> None:
        super().__init__()
        check_choice("prompt condition mode", mode, ConditionMode)
        _check_decoder(mode, embed_dim, width, decoder)
        self.mode = mode
        self.embed_dim = embed_dim
        self.width = width
        self.detach = detach
        self.extra_contexts = int(mode == "concat")
        self.net = _network(embed_dim, width, reduction) if mode in ("add", "concat") else None
        if mode == "query" and decoder is None:
            decoder = ContextDecoder(embed_dim, query_dim=width)
        self.decoder = decoder

    def forward(self, contexts: Tensor, dense: Tensor, pooled: Tensor) -> Tensor:
        """Contexts of every image.

        Args:
            contexts: [1, N, W], learned.
            dense: [B, E, h, w] embeddings of the locations, not normalised ("query" reads them).
            pooled: [B, E] embeddings of the images, not normalised.

        Returns:
            [B, N, W]; [B, N + 1, W] for "concat".
        """
        if self.detach:
            dense, pooled = dense.detach(), pooled.detach()
        contexts = contexts.expand(len(pooled), -1, -1)
        if self.decoder is not None:
            return self.decoder(contexts, image_memory(dense, pooled))
        if self.net is None:
            return contexts
        shift = self.net(F.normalize(pooled, dim=1))[:, None]
        return contexts + shift if self.mode == "add" else torch.cat([contexts, shift], dim=1)


def _network(embed_dim: int, width: int, reduction: int) -> nn.Sequential:
    if not 1 <= reduction <= embed_dim:
        raise ConfigError(
            f"prompt condition reduction={reduction}: choose 1 to {embed_dim}, the embedding size"
        )
    hidden = embed_dim // reduction
    last = nn.Linear(hidden, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(embed_dim, hidden), nn.ReLU(), last)


def _check_decoder(mode: str, embed_dim: int, width: int, decoder: ContextDecoder | None) -> None:
    if decoder is None:
        return
    if mode != "query":
        raise ConfigError(f'prompt condition mode={mode!r} takes no decoder, only "query" does')
    if (decoder.embed_dim, decoder.query_dim) != (embed_dim, width):
        raise ConfigError(
            f"the prompt condition needs a context decoder with embed_dim={embed_dim} and "
            f"query_dim={width}, this one has {decoder.embed_dim} and {decoder.query_dim}"
        )
