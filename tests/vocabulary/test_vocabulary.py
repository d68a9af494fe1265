import dataclasses
import json
import pickle
import random
import subprocess
import sys
from pathlib import Path

import pytest

from densedet.errors import VocabularyError
from densedet.vocabulary import Category, Vocabulary

PETS = Vocabulary(
    (
        Category("cat", ("cat", "kitten")),
        Category("remote control", seen=False),
        Category("grass", kind="stuff"),
        Category("café", ("coffee house",), frequency="r"),
    )
)
PETS_DIGEST = "69b96d8e27f485abdd427514dc5a2ad3dbec99a393cce81bc906f0942e5678ec"


def random_vocabulary(rng: random.Random, plain: bool = False) -> Vocabulary:
    """``plain``: only what the short text form can hold."""
    letters = "abcXYZ é_-/." if plain else "abcXYZ é_-/.,;'\"\\{}\n\u2028漢"
    names: dict[str, str] = {}
    for _ in range(rng.randint(1, 20)):
        name = "".join(rng.choices(letters, k=rng.randint(1, 8))).strip()
        key = " ".join(name.replace("_", " ").split()).casefold()
        if key:
            names.setdefault(key, name)
    words = list(names.values()) or ["cat"]
    categories = []
    while words:
        synonyms = tuple(words.pop() for _ in range(min(len(words), rng.randint(1, 3))))
        if plain:
            categories.append(Category(synonyms[0], synonyms))
        else:
            label = rng.choice([synonyms[0], f"label {len(categories)}"])
            categories.append(
                Category(
                    label,
                    synonyms,
                    kind=rng.choice(["thing", "stuff"]),
                    seen=rng.random() < 0.5,
                    frequency=rng.choice([None, "r", "c", "f"]),
                )
            )
    return Vocabulary(tuple(categories))


def test_views() -> None:
    assert len(PETS) == 4
    assert [category.label for category in PETS] == list(PETS.labels)
    assert PETS.labels == ("cat", "remote control", "grass", "café")
    assert PETS.synonyms == ("cat", "kitten", "remote control", "grass", "coffee house")
    assert PETS.groups == (0, 0, 1, 2, 3)
    assert PETS.seen == (True, False, True, True)
    assert PETS.kinds == ("thing", "thing", "stuff", "thing")


def test_is_frozen_and_hashable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PETS.categories = ()  # type: ignore[misc]
    same = Vocabulary(list(PETS.categories))  # type: ignore[arg-type]
    assert same == PETS and hash(same) == hash(PETS)


def test_pickle_round_trip_after_a_lookup() -> None:
    PETS.index("grass")
    assert pickle.loads(pickle.dumps(PETS)) == PETS


def test_index() -> None:
    assert [PETS.index(label) for label in PETS.labels] == [0, 1, 2, 3]
    assert PETS.index(" grass ") == 2


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("remote contrl", "'remote contrl' \\(close: 'remote control'\\)"),
        ("kitten", "it is a prompt of 'cat'"),
        ("Remote_control", "it is a prompt of 'remote control'"),
        ("zebra", "no label 'zebra'; use one of its 4 labels"),
    ],
)
def test_index_of_an_unknown_label(label: str, message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        PETS.index(label)


def test_first_difference() -> None:
    vocabulary = Vocabulary.parse("red,crimson;green;blue")
    assert vocabulary.first_difference(Vocabulary.parse("red;green;blue")) is None
    for text, expected in (
        ("red;blue;green", (1, "'green'", "'blue'")),
        ("red;green", (2, "'blue'", "nothing")),
        ("red;green;blue;black", (3, "nothing", "'black'")),
    ):
        assert vocabulary.first_difference(Vocabulary.parse(text)) == expected


def test_of_kind() -> None:
    assert PETS.of_kind("stuff").labels == ("grass",)
    assert PETS.of_kind("thing").labels == ("cat", "remote control", "café")
    with pytest.raises(VocabularyError, match="no category of kind 'stuff'"):
        Vocabulary.parse("cat").of_kind("stuff")
    with pytest.raises(VocabularyError, match="unknown kind 'animal'"):
        PETS.of_kind("animal")  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(20))
def test_with_unseen_marks_exactly_these(seed: int) -> None:
    rng = random.Random(seed)
    vocabulary = random_vocabulary(rng)
    unseen = {label for label in vocabulary.labels if rng.random() < 0.5}
    marked = vocabulary.with_unseen(unseen)
    assert {c.label for c in marked if not c.seen} == unseen
    assert marked.with_unseen([c.label for c in vocabulary if not c.seen]) == vocabulary


def test_seen_by_goes_by_all_names_that_training_had_labels_of() -> None:
    trained = Vocabulary.from_names([["cat", "Kitten"], "traffic_light", "dog"])
    asked = Vocabulary.from_names([["kitten"], ["animal", "dog"], "Traffic light", "cow"])
    assert asked.seen_by(trained).seen == (True, True, True, False)
    assert asked.seen_by(trained.with_unseen(["dog"])).seen == (True, False, True, False)
    assert asked.with_unseen(["kitten"]).seen_by(trained) == asked.seen_by(trained)


def test_with_stuff_appends() -> None:
    both = PETS.with_stuff(Vocabulary.parse("sea,water;sky"))
    assert both.labels == (*PETS.labels, "sea", "sky")
    assert both.synonyms[-3:] == ("sea", "water", "sky")
    assert both.kinds == (*PETS.kinds, "stuff", "stuff")
    with pytest.raises(VocabularyError, match="already used"):
        PETS.with_stuff(Vocabulary.parse(PETS.labels[0]))


def test_with_unseen_refuses() -> None:
    with pytest.raises(VocabularyError, match="'dog'"):
        PETS.with_unseen(["cat", "dog"])
    with pytest.raises(VocabularyError, match="expected a list"):
        PETS.with_unseen("cat")


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ((), "vocabulary is empty"),
        ((Category("cat"), Category("dog"), Category("cat")), "category 3: the label 'cat' is alr"),
        ((Category("tom cat"), Category("Tom_Cat")), r"'Tom_Cat' is already used \(as 'tom cat'\)"),
        ((Category("a", ("x", "y")), Category("b", ("z", "y"))), "'y' of 'b' also belongs to 'a'"),
        (
            (Category("cat", ("cat", "dog")), Category("dog")),
            "'dog' of 'dog' also belongs to 'cat'",
        ),
    ],
)
def test_refuses(categories: tuple[Category, ...], message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        Vocabulary(categories)


# Parsing and lists


def test_parse() -> None:
    expected = Vocabulary((Category("cat", ("cat", "kitten")), Category("remote control")))
    for text in (
        "cat,kitten;remote control",
        " cat , kitten ;\tremote control ; ",
        "cat,kitten;remote control;",
    ):
        assert Vocabulary.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "vocabulary is empty"),
        ("  ", "vocabulary is empty"),
        (";", "category 1: an empty name"),
        ("cat;;dog", "category 2: an empty name"),
        ("cat;dog;;", "category 3: an empty name"),
        ("cat,;dog", "category 1: an empty name in 'cat,'"),
        (",cat", "category 1: an empty name"),
        ("cat;dog,cat", "category 2: the synonym 'cat' of 'dog' also belongs to 'cat'"),
        ("cat;dog;Cat", "category 3: the label 'Cat' is already used"),
        ("dog,dog", "category 1: category 'dog': the synonyms 'dog' and 'dog'"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        Vocabulary.parse(text)


@pytest.mark.parametrize("seed", range(100))
def test_text_round_trip(seed: int) -> None:
    vocabulary = random_vocabulary(random.Random(seed), plain=True)
    assert Vocabulary.parse(vocabulary.to_text()) == vocabulary


@pytest.mark.parametrize(
    ("category", "message"),
    [
        (Category("road, route"), "','"),
        (Category("a;b"), "';'"),
        (Category("a\u2028b"), "line break"),
        (Category("window", ("pane",)), "not its first synonym"),
        (Category("cat", seen=False), "would be lost"),
        (Category("sky", kind="stuff"), "would be lost"),
        (Category("cat", frequency="f"), "would be lost"),
    ],
)
def test_text_form_refuses_to_lose_anything(
    category: Category, message: str, tmp_path: Path
) -> None:
    vocabulary = Vocabulary((Category("dog"), category))
    with pytest.raises(VocabularyError, match=message):
        vocabulary.to_text()
    with pytest.raises(VocabularyError, match=r"v\.txt: .*use \.json"):
        vocabulary.save(tmp_path / "v.txt")
    assert list(tmp_path.iterdir()) == []


def test_from_names() -> None:
    vocabulary = Vocabulary.from_names(["road, route", ["cat", "kitten"], ("dog",)])
    assert vocabulary.labels == ("road, route", "cat", "dog")
    assert vocabulary.synonyms == ("road, route", "cat", "kitten", "dog")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "vocabulary is empty"),
        ("cat", "got the text 'cat'"),
        (["cat", []], "category 2: an empty list"),
        (["cat", 3], "category 2: expected a name or a list of names, got 3"),
        (["cat", ["dog", 3]], "category 2: a synonym of category 'dog' must be a string"),
        (["cat", ""], "category 2: a label is empty"),
    ],
)
def test_from_names_refuses(names: list, message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        Vocabulary.from_names(names)


# Digest


def test_digest_is_this_very_string() -> None:
    assert PETS.digest() == PETS_DIGEST


def test_digest_is_the_same_in_another_process() -> None:
    code = (
        "import sys; from densedet.vocabulary import Vocabulary;"
        "print(Vocabulary.parse('cat,kitten;dog').digest(), {'torch', 'yaml'} & {*sys.modules})"
    )
    root = Path(__file__).parents[2]
    for seed in ("1", "2"):
        printed = subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        # Nor does a vocabulary need torch, or a parser of YAML where there is none.
        assert printed == [Vocabulary.parse("cat,kitten;dog").digest(), "set()"]


def test_digest_changes_with_every_field_and_the_order() -> None:
    base = Category("cat", ("cat", "kitten"))
    variants = [
        dataclasses.replace(base, **change)
        for change in (
            {},
            {"label": "Cat"},
            {"synonyms": ("cat",)},
            {"synonyms": ("kitten", "cat")},
            {"synonyms": ("cat, kitten",)},
            {"kind": "stuff"},
            {"seen": False},
            {"frequency": "r"},
        )
    ]
    assert {field.name for field in dataclasses.fields(Category)} == {
        "label",
        "synonyms",
        "kind",
        "seen",
        "frequency",
    }
    vocabularies = [Vocabulary((variant, Category("dog"))) for variant in variants]
    vocabularies += [Vocabulary((Category("dog"), base)), Vocabulary((base,))]
    assert len({vocabulary.digest() for vocabulary in vocabularies}) == len(vocabularies)


# Files


@pytest.mark.parametrize("seed", range(30))
def test_save_and_load_round_trip(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    vocabulary = random_vocabulary(rng)
    assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary
    vocabulary.save(tmp_path / "v.json")
    loaded = Vocabulary.from_file(tmp_path / "v.json")
    assert loaded == vocabulary and loaded.digest() == vocabulary.digest()
    plain = random_vocabulary(rng, plain=True)
    plain.save(str(tmp_path / "v.txt"))
    assert Vocabulary.from_file(str(tmp_path / "v.txt")) == plain


def test_save_refuses_an_unknown_suffix(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"v\.yaml: .*\.json or \.txt"):
        PETS.save(tmp_path / "v.yaml")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("v.txt", "cat, kitten\n\ndog\n"),
        ("v.txt", "\ufeffcat,kitten\r\ndog"),
        ("v.json", '[["cat", "kitten"], "dog"]'),
        (
            "v.JSON",
            '{"categories": [{"label": "cat", "synonyms": ["cat", "kitten"]}, {"label": "dog"}]}',
        ),
    ],
)
def test_from_file(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    assert Vocabulary.from_file(tmp_path / name) == Vocabulary.parse("cat,kitten;dog")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.txt", b"", "vocabulary is empty"),
        ("v.txt", b"cat\n\ndog,,\n", "line 3: an empty name in 'dog,,'"),
        ("v.txt", b"cat\ndog\ncat\n", "label 'cat' is already used"),
        ("v.txt", b"caf\xe9", "not UTF-8"),
        ("v.csv", b"cat", "a vocabulary is a .json, .yaml or .txt file"),
        ("v.json", b'["cat",\n', r"not valid JSON \(line 2, column 1"),
        ("v.json", b"[" * 200_000, "cannot be decoded"),
        ("v.json", b"[" + b"1" * 5_000 + b"]", "cannot be decoded"),
        ("v.json", b"[]", "vocabulary is empty"),
        ("v.json", b"3", "got int"),
        ("v.json", b"{}", "no list 'categories'"),
        ("v.json", b'{"categories": "cat"}', "no list 'categories'"),
        ("v.json", b'{"categories": []}', "vocabulary is empty"),
        (
            "v.json",
            b'{"categories": [{"label": "a"}, 3]}',
            "category 2: expected an object with a 'l",
        ),
        ("v.json", b'{"categories": [{"label": "a", "colour": 1}]}', "1: unknown field 'colour'"),
        ("v.json", b'{"categories": [{"label": "a", "synonyms": "b"}]}', "synonyms must be a list"),
        (
            "v.json",
            b'{"categories": [{"label": "a", "kind": "b"}]}',
            "category 1: category 'a': kind",
        ),
        (
            "v.json",
            b'{"categories": [{"name": "a"}]}',
            "category 1: expected an object with an inte",
        ),
        ("v.json", b'{"categories": [{"id": 1, "name": "a"}, {"id": 2}]}', "category 2: no 'name'"),
    ],
)
def test_bad_file_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(VocabularyError, match=message) as caught:
        Vocabulary.from_file(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match=r"gone\.json: cannot be read \(No such file"):
        Vocabulary.from_file(tmp_path / "gone.json")


# COCO format

COCO = {
    "images": [],
    "categories": [
        {"id": 7, "name": "grass", "isthing": 0},
        {"id": 3, "name": "cat ", "isthing": 1, "frequency": "r", "synonyms": ["cat", "puss"]},
        {"id": 5, "name": "dog", "supercategory": "animal"},
    ],
}


def test_from_coco_sorts_by_id(tmp_path: Path) -> None:
    expected = Vocabulary(
        (Category("cat", frequency="r"), Category("dog"), Category("grass", kind="stuff"))
    )
    assert Vocabulary.from_coco(COCO) == expected
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(COCO), "utf-8")
    assert Vocabulary.from_coco(path) == Vocabulary.from_file(path) == expected


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([], "vocabulary is empty"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "category 2: id 1 is used twice"),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "a"}], "label 'a' is already used"),
        ([{"id": "1", "name": "a"}], "category 1: expected an object with an integer 'id'"),
        ([{"id": 1, "name": "a", "frequency": "x"}], "category 1: category 'a': frequency"),
    ],
)
def test_from_coco_refuses(categories: list, message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        Vocabulary.from_coco({"categories": categories})


def test_from_coco_refuses_another_file(tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text("[1]", "utf-8")
    with pytest.raises(VocabularyError, match=r"list\.json: not a COCO-format file"):
        Vocabulary.from_coco(path)


# resolve


def test_resolve(tmp_path: Path) -> None:
    pets = Vocabulary.parse("cat,kitten;dog")
    path = tmp_path / "pets.json"
    pets.save(path)
    specs = (pets, path, str(path), [["cat", "kitten"], "dog"], pets.to_dict(), "cat,kitten; dog")
    for spec in specs:
        assert Vocabulary.resolve(spec) == pets
    assert Vocabulary.resolve("coco") == Vocabulary.named("coco")
    assert Vocabulary.resolve("coco;").labels == ("coco",)
    for name in ("person", "8-ball", "aerosol_can", "cocoa"):
        assert Vocabulary.resolve(name).labels == (name,)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("words.csv", r"^words\.csv: .* a vocabulary is a \.json, \.yaml or \.txt file"),
        ("folder/words", "^folder/words: .* a vocabulary is"),
        ("gone/pets.txt", "gone/pets.txt: cannot be read"),
        ("coco_panoptc", "did you mean 'coco_panoptic'"),
        ("ade20k", "did you mean 'ade20k_150'"),
        ("", "empty"),
        (3, "cannot make a vocabulary of int 3"),
    ],
)
def test_resolve_refuses(
    spec: object, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    for file in ("cat", "words.csv", "folder/words"):
        Path(file).write_text("cat")
    assert Vocabulary.resolve("cat").labels == ("cat",)  # looks like a name, though there is a file
    assert Vocabulary.resolve("gone.csv").labels == ("gone.csv",)
    with pytest.raises(VocabularyError, match=message):
        Vocabulary.resolve(spec)  # type: ignore[arg-type]
