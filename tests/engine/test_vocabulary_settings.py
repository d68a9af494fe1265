"""Which words and exponents a vocabulary study asks for."""

import pytest
from torch import nn

from densedet.engine.vocabulary_settings import Studies, find_ensemble, plan
from densedet.errors import ConfigError
from densedet.modeling.mask_ensemble import MaskEnsemble
from densedet.modeling.roi_heads import ScoreEnsemble
from densedet.vocabulary import Category, Vocabulary

OWN = Vocabulary(
    (
        Category("cat", ("cat", "kitten", "tabby"), seen=False),
        Category("sky", kind="stuff"),
        Category("settee", ("Sofa", "couch"), "stuff"),  # the label is not prompted
        Category("Big_Dog", ("puppy", "big dog")),  # it is, but not first
        Category("aeroplane", ("airplane",)),
    )
)
SYNONYMS = {0: "kitten", 2: "couch", 3: "puppy"}


class Model(nn.Module):
    def __init__(self, vocabulary=OWN, **parts):
        super().__init__()
        self.vocabulary = vocabulary
        for name, part in parts.items():
            setattr(self, name, part)


def swapped(setting):
    return {i for i, (a, b) in enumerate(zip(OWN, setting.vocabulary, strict=True)) if a != b}


def test_synonyms_stand_instead_of_names():
    none, all_of_them = plan(Model(), Studies(fractions=[1, 0]))
    assert none.vocabulary == OWN
    assert (none.values, all_of_them.values) == (
        {"fraction": 0, "swapped": 0},
        {"fraction": 1, "swapped": 3},
    )
    asked = all_of_them.vocabulary
    assert asked.synonyms == ("kitten", "sky", "couch", "puppy", "airplane")
    assert (asked.labels, asked.kinds, asked.seen) == (OWN.labels, OWN.kinds, OWN.seen)


def test_fractions_are_nested_and_their_order_depends_on_the_seed():
    fractions = [1 / 3, 2 / 3, 1]
    orders = set()
    for seed in range(20):
        settings = plan(Model(), Studies(fractions=fractions, seed=seed))
        parts = [swapped(setting) for setting in settings]
        assert [len(part) for part in parts] == [1, 2, 3]
        assert parts[0] < parts[1] < parts[2] == set(SYNONYMS)
        assert settings == plan(Model(), Studies(fractions=fractions, seed=seed))
        for setting, part in zip(settings, parts, strict=True):
            words = [setting.vocabulary.categories[i].synonyms for i in sorted(part)]
            assert words == [(SYNONYMS[i],) for i in sorted(part)]
        orders.add((*parts[0], *(parts[1] - parts[0])))
    assert len(orders) == 6


def test_distractors_are_unseen_and_those_the_model_has_are_left_out():
    further = Vocabulary(
        (
            Category("fog", kind="stuff"),
            Category("felid", ("Tabby",)),  # a word of "cat"
            Category("AEROPLANE", ("jet",)),  # a label
            Category("boat", ("boat", "ship")),
            Category("sofa"),  # a word of "settee"
            Category("tree", seen=False),
        )
    )
    settings = plan(Model(), Studies(distractors=further, counts=[3, 0, 1, 1]))
    assert [setting.values for setting in settings] == [{"count": n} for n in (0, 1, 3)]
    assert settings[0].vocabulary == OWN
    added = [setting.vocabulary.categories[len(OWN) :] for setting in settings]
    assert [[c.label for c in part] for part in added] == [[], ["fog"], ["fog", "boat", "tree"]]
    assert all(setting.vocabulary.categories[: len(OWN)] == OWN.categories for setting in settings)
    fog, boat, _ = added[2]
    assert (fog.kind, boat.synonyms) == ("stuff", ("boat", "ship"))
    assert not any(category.seen for category in added[2])
    with pytest.raises(ConfigError, match="counts: 4 .* of the 6 given only 3 are not in the mode"):
        plan(Model(), Studies(distractors=further, counts=[0, 4]))


@pytest.mark.parametrize("kind", [ScoreEnsemble, MaskEnsemble])
def test_one_exponent_is_swept_while_the_other_stays(kind):
    model = Model(inner=nn.Sequential(kind(0.1, 0.8, 20.0)))
    settings = plan(model, Studies(exponents=[1, 0.25]))
    assert [(s.values["swept"], s.exponents) for s in settings] == [
        ("unseen", (0.1, 0.25)),
        ("unseen", (0.1, 1)),
        ("seen", (0.25, 0.8)),
        ("seen", (1, 0.8)),
    ]
    assert all((s.values["seen"], s.values["unseen"]) == s.exponents for s in settings)
    assert {s.vocabulary for s in settings} == {OWN}


def test_no_or_two_ensembles_are_refused():
    with pytest.raises(ConfigError, match="Model has no ensemble .*model.mask_ensemble to L"):
        plan(Model(), Studies(exponents=[0.5]))
    two = {"one": ScoreEnsemble(0.1, 0.8, 1.0), "other": MaskEnsemble(0.1, 0.8, 1.0)}
    with pytest.raises(ConfigError, match=r"at model.one and model.other; set all but one"):
        find_ensemble(Model(**two))


def test_no_synonyms():
    with pytest.raises(ConfigError, match="none of the 2 categories of the model has one; set mod"):
        plan(Model(Vocabulary.parse("a;b")), Studies(fractions=[0.5]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no study is asked for"),
        ({"fractions": [0, 1.01]}, "synonyms: 1.01 must lie in 0..1"),
        ({"exponents": [-0.5]}, "exponents: -0.5 must lie in 0..1"),
        ({"fractions": [float("nan")]}, "synonyms: nan must lie in 0..1"),
        ({"distractors": OWN, "counts": [3, -1]}, "counts: -1 must not be negative"),
        ({"counts": [1]}, "distractors: missing"),
        ({"distractors": OWN, "fractions": [0]}, "counts: missing"),
        ({"fractions": [0], "seed": -1}, "seed: -1 must not be negative"),
    ],
)
def test_values_out_of_range(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Studies(**arguments)
