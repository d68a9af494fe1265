import dataclasses

import pytest

from densedet.errors import DensedetError, VocabularyError
from densedet.vocabulary import Category


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

    names = ("Ma\u00dfe", "Masse", "stra\u00dfe", "strasse", "\u03c3", "\u03c2")
    tokens = tokenize_whole(list(names)).tolist()
    assert all(tokens.count(row) == 1 for row in tokens)
    assert Category("a", names).synonyms == names


def test_errors_are_densedet_errors() -> None:
    with pytest.raises(DensedetError):
        Category("")
