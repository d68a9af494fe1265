"""DenseCLIP (arXiv 2112.01518): pixel-text score maps with context-aware prompts."""

from typing import Literal, get_args

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from densedet.errors import ConfigError
from densedet.modeling.checks import check_positive
from densedet.modeling.guidance.base import Guided
from densedet.modeling.guidance.decoder import ContextDecoder, image_memory
from densedet.modeling.guidance.prompted import PromptedGuidance
from densedet.modeling.guidance.prompts import PromptedTextEncoder
from densedet.modeling.guidance.scores import append_scores, score_map

Prompting = Literal["post", "pre"]


class DenseCLIP(PromptedGuidance):
    """Compares every location with every category and hands the scores to the neck.

    Post-model prompting (``t + gamma * decoder(t, image)``) refines the text embeddings per image;
    pre-model prompting lets the learned contexts look at the image before the text tower, which
    then runs for every image.

    Args:
        text: the prompted text tower.
        decoder: lets text look at the image; None compares with the text as it is.
        auxiliary: `PixelScoreLoss` or `BoxScoreLoss` on the scores; None for no loss.
        embed_dim: E, of the text tower and of the trunk.
        fused_level: the level that the scores are appended to, of the dense embedding's size; None
            for none.
        temperature: the scores are divided by it for the loss.
        fuse_scaled: append scores divided by the temperature (DenseCLIP's detectors) rather than
            cosines (its segmentors).
        gamma: initial value of the learned factors of the decoder's output.
        prompting: "post" or "pre"; "pre" needs a decoder with the text's width as ``query_dim``.

    Raises:
        ConfigError: sizes that do not fit, "pre" without a decoder, or no positive temperature.
    """

    embed_dim: int

    def __init__(
        self,
        text: PromptedTextEncoder,
        decoder: ContextDecoder | None,
        auxiliary: nn.Module | None,
        *,
        embed_dim: int,
        fused_level: str | None = "res5",
        temperature: float = 0.07,
        fuse_scaled: bool = False,
        gamma: float = 1e-4,
        prompting: Prompting = "post",
    ) -> None:
        super().__init__(text, auxiliary, temperature)
        _check(text, decoder, embed_dim, prompting)
        check_positive("guidance", temperature=temperature)
        self.decoder = decoder
        self.embed_dim = embed_dim
        self.fused_level = fused_level
        self.fuse_scaled = fuse_scaled
        self.prompting = prompting
        self.gamma: nn.Parameter | None = None
        if prompting == "post" and decoder is not None:
            self.gamma = nn.Parameter(torch.full((embed_dim,), gamma))

    @property
    def extra_channels(self) -> dict[str, int]:
        """K channels at the fused level."""
        return {} if self.fused_level is None else {self.fused_level: len(self.vocabulary)}

    def forward(
        self, features: dict[str, Tensor], dense: Tensor | None, pooled: Tensor | None
    ) -> Guided:
        """Guide the features of a trunk; see `Guidance.forward`."""
        if dense is None or pooled is None:
            raise ValueError("DenseCLIP needs the dense and the pooled embedding of the images")
        text = self._embed_text(dense, pooled)
        scores = score_map(dense, text, self.text.groups, len(self.vocabulary))
        return Guided(self._fuse(features, scores), scores, text)

    def _embed_text(self, dense: Tensor, pooled: Tensor) -> Tensor:
        """[B, P, E] for B images."""
        batch = len(dense)
        if self.decoder is None:
            return self.text().expand(batch, -1, -1)
        memory = image_memory(dense, pooled)
        if self.gamma is None:
            contexts = self.text.contexts.expand(batch, -1, -1)
            return self.text(self.decoder(contexts, memory))
        text = self.text().expand(batch, -1, -1)
        return text + self.gamma * self.decoder(text, memory)

    def _fuse(self, features: dict[str, Tensor], scores: Tensor) -> dict[str, Tensor]:
        if self.fused_level is None:
            return dict(features)
        fused = scores / self.temperature if self.fuse_scaled else scores
        return append_scores(features, self.fused_level, fused)

    def losses(self, guided: Guided, targets: Tensor | list[Instances]) -> dict[str, Tensor]:
        """The auxiliary loss of the scores over the temperature; see `Guidance.losses`."""
        return self._auxiliary_loss(guided.scores, guided, targets)


def _check(
    text: PromptedTextEncoder, decoder: ContextDecoder | None, embed_dim: int, prompting: str
) -> None:
    if prompting not in get_args(Prompting):
        raise ConfigError(f'prompting must be "post" or "pre", not {prompting!r}')
    if text.embed_dim != embed_dim:
        raise ConfigError(
            f"the text tower embeds in {text.embed_dim} dimensions, the guidance in {embed_dim}: "
            "take the text tower that belongs to the trunk"
        )
    if decoder is None:
        if prompting == "pre":
            raise ConfigError("pre-model prompting needs a context decoder")
        return
    query_dim = text.width if prompting == "pre" else embed_dim
    if (decoder.embed_dim, decoder.query_dim) != (embed_dim, query_dim):
        raise ConfigError(
            f"{prompting}-model prompting needs a context decoder with embed_dim={embed_dim} and "
            f"query_dim={query_dim}, this one has {decoder.embed_dim} and {decoder.query_dim}"
        )
