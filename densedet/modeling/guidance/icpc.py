"""ICPC (arXiv 2308.07078): prompts that follow the image, contrast, scores at several levels."""

from collections.abc import Mapping, Sequence

from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from densedet.errors import ConfigError, VocabularyError
from densedet.modeling.guidance.base import Guided
from densedet.modeling.guidance.conditioning import PromptCondition
from densedet.modeling.guidance.contrast import AlignGuidedContrast
from densedet.modeling.guidance.decoder import ContextDecoder, image_memory
from densedet.modeling.guidance.denseclip import DenseCLIP
from densedet.modeling.guidance.multiscale import (
    Fuse,
    LevelEmbeddings,
    MultiScaleGuided,
    check_levels,
    mean_scores,
)
from densedet.modeling.guidance.prompts import PromptedTextEncoder
from densedet.modeling.guidance.scores import append_scores, score_map
from densedet.vocabulary import Vocabulary


class ICPC(DenseCLIP):
    """DenseCLIP with prompts for every image, a contrastive loss and scores at several levels.

    The paper's three ingredients in a design of our own: its equations and numbers were not at
    hand. With a static condition, the dense level alone, no contrast and a decoder it is DenseCLIP
    with post-model prompting, its parameters' names included; what it adds is at ``condition.`` and
    ``embeddings.``.

    Args:
        text: the prompted text tower, which runs for every image unless the condition is static.
        condition: makes the contexts of an image.
        auxiliary: `PixelScoreLoss` or `BoxScoreLoss`; its weight is shared out equally among the
            score maps. None for no loss.
        contrast: the contrastive loss at the finest aligned level, which needs pixel labels; None
            for none.
        decoder: refines the text embeddings after the tower, as in DenseCLIP; None leaves them.
        embed_dim: E, of the text tower and of the trunk.
        levels: the levels that are compared with text, in any order.
        dense_level: the one of them of the dense embedding's size, which stands for it.
        level_channels: channels of the trunk's levels; those of the other ``levels`` are needed.
        fuse: "concat" appends to each level its scores; "mean" appends the mean of all score maps
            to the finest of the levels, and that mean alone is supervised.
        temperature: the scores are divided by it for the auxiliary loss.
        gamma: initial value of the learned factors of the decoder's output.
        contrast_start_iter: the contrast is 0 before this iteration of the training; outside a
            training loop (no event storage) it always counts.

    Raises:
        ConfigError: sizes or levels that do not fit, or a condition whose further context leaves
            the names of the vocabulary no room.
    """

    def __init__(
        self,
        text: PromptedTextEncoder,
        condition: PromptCondition,
        auxiliary: nn.Module | None,
        contrast: AlignGuidedContrast | None = None,
        decoder: ContextDecoder | None = None,
        *,
        embed_dim: int,
        levels: Sequence[str] = ("res3", "res4", "res5"),
        dense_level: str = "res5",
        level_channels: Mapping[str, int] | None = None,
        fuse: Fuse = "concat",
        temperature: float = 0.07,
        gamma: float = 1e-4,
        contrast_start_iter: int = 5000,
    ) -> None:
        super().__init__(
            text,
            decoder,
            auxiliary,
            embed_dim=embed_dim,
            fused_level=None,  # `forward` appends the scores of several levels
            temperature=temperature,
            gamma=gamma,
        )
        if (condition.embed_dim, condition.width) != (embed_dim, text.width):
            raise ConfigError(
                f"the prompt condition needs embed_dim={embed_dim} and width={text.width}, this "
                f"one has {condition.embed_dim} and {condition.width}"
            )
        channels = level_channels or {}
        self.levels = check_levels(levels, dense_level, channels, fuse)
        self.dense_level = dense_level
        self.fuse = fuse
        self.condition = condition
        self.contrast = contrast
        self.contrast_start_iter = contrast_start_iter
        self._embedded = {name: channels[name] for name in self.levels if name != dense_level}
        self.embeddings = LevelEmbeddings(self._embedded, embed_dim)
        missing = self._missing_positions()
        if missing:
            raise ConfigError(f"{missing}: raise class_tokens by 1 or shorten the names")

    def _missing_positions(self) -> str:
        """What does not fit the text tower; empty if everything does."""
        contexts = self.text.contexts.shape[1] + self.condition.extra_contexts
        longest, room = self.text.tokens.shape[1], self.text.encoder.context_length
        if contexts + longest <= room:
            return ""
        return (
            f"{contexts} contexts and a name of {longest} tokens (start and end included) do not "
            f"fit the {room} positions of the text tower"
        )

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Score these categories from now on; see `PromptedTextEncoder.set_vocabulary`.

        Raises:
            VocabularyError: a name that leaves the contexts no room; nothing changes then.
        """
        before = self.vocabulary
        super().set_vocabulary(vocabulary)
        missing = self._missing_positions()
        if missing:
            super().set_vocabulary(before)
            raise VocabularyError(
                f"{missing}: shorten the name or build the model with class_tokens raised by 1"
            )

    @property
    def extra_channels(self) -> dict[str, int]:
        """K channels at every aligned level, or at the finest of them for the mean."""
        fused = self.levels if self.fuse == "concat" else self.levels[:1]
        return {name: len(self.vocabulary) for name in fused}

    @property
    def level_channels(self) -> dict[str, int]:
        """Those of the levels that are embedded here."""
        return self._embedded

    def forward(
        self, features: dict[str, Tensor], dense: Tensor | None, pooled: Tensor | None
    ) -> MultiScaleGuided:
        """Guide the features of a trunk; see `Guidance.forward`.

        Returns:
            Its ``scores`` are those of the dense embedding, or the mean at the finest level.
        """
        if dense is None or pooled is None:
            raise ValueError("ICPC needs the dense and the pooled embedding of the images")
        text = self._embed_text(dense, pooled)
        maps = {self.dense_level: dense, **self.embeddings(features)}
        groups, classes = self.text.groups, len(self.vocabulary)
        scores = {name: score_map(maps[name], text, groups, classes) for name in self.levels}
        finest = self.levels[0]
        supervised = scores
        if self.fuse == "mean":
            supervised = {finest: mean_scores(list(scores.values()))}
        for name, level_scores in supervised.items():
            features = append_scores(features, name, level_scores)
        main = supervised.get(self.dense_level, supervised[finest])
        return MultiScaleGuided(features, main, text, supervised, maps[finest], scores[finest])

    def _embed_text(self, dense: Tensor, pooled: Tensor) -> Tensor:
        """[B, P, E] for B images."""
        if self.condition.mode == "static":
            text = self.text().expand(len(dense), -1, -1)
        else:
            text = self.text(self.condition(self.text.contexts, dense, pooled))
        if self.decoder is None:
            return text
        return text + self.gamma * self.decoder(text, image_memory(dense, pooled))

    def losses(self, guided: Guided, targets: Tensor | list[Instances]) -> dict[str, Tensor]:
        """The auxiliary loss of every supervised score map, and the contrast.

        Args:
            guided: what `forward` returned.
            targets: see `Guidance.losses`; boxes only without a contrast.

        Returns:
            "loss_aux" of one score map, or "loss_aux_res3" and the like of several;
            "loss_contrast".

        Raises:
            ConfigError: boxes for the contrast.
        """
        if not isinstance(guided, MultiScaleGuided):
            raise TypeError(f"ICPC's losses need what its forward returned, not {type(guided)}")
        return self._auxiliary_losses(guided, targets) | self._contrast_loss(guided, targets)

    def _auxiliary_losses(
        self, guided: MultiScaleGuided, targets: Tensor | list[Instances]
    ) -> dict[str, Tensor]:
        count = len(guided.supervised)
        losses: dict[str, Tensor] = {}
        for level, scores in guided.supervised.items():
            suffix = f"_{level}" if count > 1 else ""
            for name, loss in self._auxiliary_loss(scores, guided, targets).items():
                losses[name + suffix] = loss / count
        return losses

    def _contrast_loss(
        self, guided: MultiScaleGuided, targets: Tensor | list[Instances]
    ) -> dict[str, Tensor]:
        if self.contrast is None:
            return {}
        if not isinstance(targets, Tensor):
            raise ConfigError("the contrast needs the labels of pixels, not boxes: contrast=None")
        if has_event_storage() and get_event_storage().iter < self.contrast_start_iter:
            return {"loss_contrast": 0.0 * guided.finest_scores.sum()}
        return self.contrast(guided.finest, guided.finest_scores, targets)
