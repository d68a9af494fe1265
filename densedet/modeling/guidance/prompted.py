"""What guidances with a prompted text tower share: the vocabulary and the loss of their scores."""

from detectron2.structures import Instances
from torch import Tensor, nn

from densedet.modeling.guidance.base import Guidance, Guided
from densedet.modeling.guidance.prompts import PromptedTextEncoder
from densedet.vocabulary import Vocabulary

_FINEST_LEVEL = "res2"


class PromptedGuidance(Guidance):
    """A guidance whose vocabulary is that of a prompted text tower.

    Args:
        text: the prompted text tower.
        auxiliary: `PixelScoreLoss` or `BoxScoreLoss` on the scores; None for no loss.
        temperature: the scores are divided by it for the loss.
    """

    def __init__(
        self, text: PromptedTextEncoder, auxiliary: nn.Module | None, temperature: float
    ) -> None:
        super().__init__()
        self.text = text
        self.auxiliary = auxiliary
        self.temperature = temperature

    @property
    def vocabulary(self) -> Vocabulary:
        """The K categories that the scores tell apart."""
        return self.text.vocabulary

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Score these categories from now on; see `PromptedTextEncoder.set_vocabulary`."""
        self.text.set_vocabulary(vocabulary)

    def _auxiliary_loss(
        self, scores: Tensor, guided: Guided, targets: Tensor | list[Instances]
    ) -> dict[str, Tensor]:
        """Of one score map, over the temperature; empty without an auxiliary loss."""
        if self.auxiliary is None:
            return {}
        size = tuple(guided.features[_FINEST_LEVEL].shape[-2:])
        losses: dict[str, Tensor] = self.auxiliary(scores / self.temperature, targets, size)
        return losses
