"""What the evaluators of open vocabularies share."""

from collections.abc import Sequence

from detectron2.evaluation import DatasetEvaluator

from densedet.errors import DatasetError
from densedet.vocabulary import Vocabulary


class OpenVocabularyEvaluator(DatasetEvaluator):
    """Has figures over the seen and over the unseen classes.

    Attributes:
        vocabulary: of the data set, whose seen flags make the groups.
    """

    vocabulary: Vocabulary

    def set_seen(self, seen: Sequence[bool]) -> None:
        """Group by what the model trained on, where that is another data set.

        Args:
            seen: K flags, in the order of the vocabulary.
        """
        unseen = [c.label for c, flag in zip(self.vocabulary, seen, strict=True) if not flag]
        self.vocabulary = self.vocabulary.with_unseen(unseen)


def check_complete(dataset_name: str, missing: Sequence[str], total: int) -> None:
    """Check that all images of a data set were evaluated.

    Args:
        missing: the names of those that were not.
        total: of the data set.

    Raises:
        DatasetError: there are some.
    """
    if missing:
        raise DatasetError(
            f"{len(missing)} of {total} images of {dataset_name!r} have no prediction, the first "
            f"is {missing[0]}; run the model on all of them"
        )
