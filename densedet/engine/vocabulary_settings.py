"""Other words, words too many, and other exponents: the settings that a vocabulary study evaluates.

The indices of the model's own categories never change, so that the evaluator of their data set
does not notice.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from densedet.errors import ConfigError
from densedet.modeling.roi_heads import ScoreEnsemble
from densedet.vocabulary import Category, Vocabulary
from densedet.vocabulary.category import prompt_key


@dataclass(frozen=True)
class Studies:
    """What is asked for; a study that has no values is left out.

    Attributes:
        fractions: of the categories that have synonyms, those asked for by one, in 0..1.
        distractors: further categories; whether they are called seen does not matter.
        counts: how many of the distractors are added, from the first on.
        exponents: of the ensemble, in 0..1; for the unseen classes and for the seen ones in turn.
        seed: of the order in which categories get a synonym.

    Raises:
        ConfigError: a value out of its range, distractors without counts or the reverse, or nothing
            at all.
    """

    fractions: Sequence[float] = ()
    distractors: Vocabulary | None = None
    counts: Sequence[int] = ()
    exponents: Sequence[float] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values in (("synonyms", self.fractions), ("exponents", self.exponents)):
            wrong = [value for value in values if not 0 <= value <= 1]
            if wrong:
                raise ConfigError(f"{name}: {wrong[0]} must lie in 0..1")
        for name, numbers in (("counts", self.counts), ("seed", [self.seed])):
            if min(numbers, default=0) < 0:
                raise ConfigError(f"{name}: {min(numbers)} must not be negative")
        if bool(self.counts) != (self.distractors is not None):
            missing = "distractors" if self.counts else "counts"
            raise ConfigError(f"{missing}: missing; give the distractors and their counts")
        if not (self.fractions or self.counts or self.exponents):
            raise ConfigError("no study is asked for: give synonyms, distractors or exponents")


@dataclass(frozen=True)
class Setting:
    """One point of a study.

    Attributes:
        study: "synonyms", "distractors" or "exponents".
        values: what is set, by the columns of its table.
        vocabulary: what the model is asked for.
        exponents: of the ensemble, for seen and for unseen classes; None: those in force.
    """

    study: str
    values: Mapping[str, float | str]
    vocabulary: Vocabulary
    exponents: tuple[float, float] | None = None


def plan(model: Any, studies: Studies) -> list[Setting]:
    """All settings, those of a study side by side, in ascending order and each once.

    Raises:
        ConfigError: the model has no synonym or no ensemble where that is asked for, or there are
            too few distractors.
    """
    own: Vocabulary = model.vocabulary
    settings = []
    if studies.fractions:
        settings += _synonym_settings(own, sorted(set(studies.fractions)), studies.seed)
    if studies.distractors is not None:
        settings += _distractor_settings(own, studies.distractors, sorted(set(studies.counts)))
    if studies.exponents:
        settings += _exponent_settings(own, find_ensemble(model), sorted(set(studies.exponents)))
    return settings


def _synonym_settings(own: Vocabulary, fractions: Sequence[float], seed: int) -> list[Setting]:
    synonyms = {i: word for i, word in enumerate(map(_first_synonym, own)) if word is not None}
    if not synonyms:
        raise ConfigError(
            f"synonyms: none of the {len(own)} categories of the model has one; set "
            'model.vocabulary to words that have, such as L(Vocabulary.from_file)(path="x.json")'
        )
    order = list(synonyms)
    random.Random(seed).shuffle(order)
    settings = []
    for fraction in fractions:
        swapped = order[: round(fraction * len(order))]
        categories = list(own)
        for i in swapped:
            categories[i] = replace(categories[i], synonyms=(synonyms[i],))
        values = {"fraction": fraction, "swapped": len(swapped)}
        settings.append(Setting("synonyms", values, Vocabulary(tuple(categories))))
    return settings


def _first_synonym(category: Category) -> str | None:
    """The first prompted word beside the category's name; None if there is only one.

    The name is the label, or the first prompted word where the label is not prompted.
    """
    words = {prompt_key(word): word for word in category.synonyms}
    name = prompt_key(category.label)
    words.pop(name if name in words else next(iter(words)))
    return next(iter(words.values()), None)


def _distractor_settings(
    own: Vocabulary, distractors: Vocabulary, counts: Sequence[int]
) -> list[Setting]:
    taken = {key for category in own for key in _keys(category)}
    free = [replace(c, seen=False) for c in distractors if taken.isdisjoint(_keys(c))]
    if counts[-1] > len(free):
        raise ConfigError(
            f"counts: {counts[-1]} distractors are asked for, but of the {len(distractors)} given "
            f"only {len(free)} are not in the model's vocabulary; give more words, or ask for fewer"
        )
    return [Setting("distractors", {"count": n}, Vocabulary((*own, *free[:n]))) for n in counts]


def _keys(category: Category) -> set[str]:
    return {prompt_key(name) for name in (category.label, *category.synonyms)}


def _exponent_settings(
    own: Vocabulary, ensemble: ScoreEnsemble, exponents: Sequence[float]
) -> list[Setting]:
    points = [("unseen", ensemble.seen, value) for value in exponents]
    points += [("seen", value, ensemble.unseen) for value in exponents]
    return [
        Setting("exponents", {"swept": name, "seen": seen, "unseen": unseen}, own, (seen, unseen))
        for name, seen, unseen in points
    ]


def find_ensemble(model: nn.Module) -> ScoreEnsemble:
    """The ensemble of a model.

    Raises:
        ConfigError: there is none, or more than one.
    """
    found = {n: m for n, m in model.named_modules() if isinstance(m, ScoreEnsemble)}
    if not found:
        raise ConfigError(
            f"exponents: {type(model).__name__} has no ensemble with the dense map of CLIP; set "
            "model.roi_heads.box_predictor.ensemble to L(ScoreEnsemble)(...) for a detector, "
            "model.mask_ensemble to L(MaskEnsemble)(...) for a panoptic model"
        )
    if len(found) > 1:
        names = " and ".join(f"model.{name}" for name in found)
        raise ConfigError(f"exponents: there are ensembles at {names}; set all but one to null")
    return next(iter(found.values()))
