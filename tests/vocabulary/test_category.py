import dataclasses

import pytest

from densedet.errors import DensedetError, VocabularyError
from densedet.vocabulary import Category, Vocabulary


def test_label_is_the_prompt_by_default() -> None:
    assert Category("cat").synonyms == ("cat",)
    assert Category("cat") == Category("cat", ("cat",), "thing", True, None)
    assert Category("cat", ("kitten",)).synonyms == ("kitten",)


def test_white_space_around_names_is_removed() -> None:
    assert Category(" window ", (" pane\n",)) == Category("window", ("pane",))


def test_lists_of_synonyms_become_tuples() -> None:
    category = Category("cat", ["cat", "kitten"])  # type: ignore[arg-type]
    assert category.synonyms == ("cat", "kitten")
    assert hash(category) == hash(Category("cat", ("cat", "kitten")))


def test_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Category("cat").label = "dog"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": ""}, "a label is empty"),
        ({"label": " _ "}, "a label is empty"),
        ({"label": 3}, "a label must be a string, got 3"),
        ({"label": "\ud800"}, "not valid Unicode"),
        ({"label": "cat", "synonyms": ("cat", " ")}, "a synonym of category 'cat' is empty"),
        ({"label": "cat", "synonyms": "kitten"}, "synonyms must be a list"),
        ({"label": "cat", "synonyms": ("tom cat", "cat", "Tom_cat")}, "'tom cat' and 'Tom_cat'"),
        ({"label": "cat", "synonyms": ("cat", "cat")}, "remove one"),
        ({"label": "cat", "kind": "animal"}, "'thing', 'stuff'"),
        ({"label": "cat", "frequency": "x"}, "None, 'r', 'c', 'f'"),
        ({"label": "cat", "frequency": ["r"]}, "frequency"),
        ({"label": "cat", "seen": 1}, "seen is 1"),
        ({"label": "cat", "seen": None}, "seen is None"),
    ],
)
def test_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        Category(**arguments)


def test_names_that_the_tokenizer_tells_apart_are_two_names() -> None:
    pytest.importorskip("open_clip")
    from densedet.clip.text import tokenize_whole

    names = ("Ma\u00dfe", "Masse", "stra\u00dfe", "strasse", "\u03c3", "\u03c2", "x\u00b2", "x2")
    names += ("a\u200bb", "ab", "\u2163", "IV", "a\u2013b", "a-b")
    tokens = tokenize_whole(list(names)).tolist()
    assert all(tokens.count(row) == 1 for row in tokens)
    assert Category("a", names).synonyms == names


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("caf\u00e9", "cafe\u0301"),
        ("\uac00", "\u1100\u1161"),
        ("\uff43\uff41\uff54", "cat"),
        ("\uff76\uff9e", "\u30ac"),
        ("a\u3000b", "a b"),
        ("\ufb01re", "fire"),
        ("don\u2019t", "don't"),
        ("\u201ccat\u201d", '"cat"'),
        ("salt &amp; pepper", "salt & pepper"),
        ("\ufeffcat", "cat"),
        ("\u2126", "\u03a9"),
    ],
)
def test_names_that_the_tokenizer_takes_for_one_are_one(name: str, other: str) -> None:
    pytest.importorskip("open_clip")
    from densedet.clip.text import tokenize_whole

    first, second = tokenize_whole([name, other]).tolist()
    assert first == second
    with pytest.raises(VocabularyError, match="are the same prompt; remove one"):
        Category("a", (name, other))
    with pytest.raises(VocabularyError, match="category 2: the label .* is already used"):
        Vocabulary((Category(name), Category(other)))


def test_errors_are_densedet_errors() -> None:
    with pytest.raises(DensedetError):
        Category("")
