"""Vocabularies in the forms that users of other tools type or have as files."""

import os
import random
from pathlib import Path

import pytest

from densedet.errors import VocabularyError
from densedet.vocabulary import CLASS_LISTS, Category, Vocabulary

THREE = Vocabulary.parse("person;St. Bernard;remote control")


@pytest.mark.parametrize(
    "text",
    [
        "person . St. Bernard . remote control .",
        "person . St. Bernard . remote control",
        "person\nSt. Bernard\nremote control",
        "person\r\n\r\nSt. Bernard;\r\nremote control\r\n",
        "person; St. Bernard\nremote control",
        "1. person\n2. St. Bernard\n3. remote control",
        "0: person\n1: St. Bernard\n2: remote control\n",
        "1) person\n3) St. Bernard\n17) remote control",
        "- person\n- St. Bernard\n- remote control",
        "\u2022 person\n\u2022 St. Bernard\n\u2022 remote control",
        "person\uff1bSt. Bernard\uff1bremote control",
        '["person", "St. Bernard", "remote control"]',
        "['person', 'St. Bernard', 'remote control']",
        "[person, St. Bernard, remote control]",
        '{"0": "person", "1": "St. Bernard", "2": "remote control"}',
        "{0: 'person', 2: 'remote control', 1: 'St. Bernard'}",
        '{"person": 0, "remote control": 2, "St. Bernard": 1}',
        "names: [person, St. Bernard, remote control]",
        "nc: 3\nnames: ['person', 'St. Bernard', 'remote control']",
        "path: x\ntrain: a\nnames:\n  0: person\n  1: St. Bernard\n  2: remote control",
        "person\n\nSt. Bernard\n;\nremote control",
        "person,\nSt. Bernard,\nremote control,",
        "person,\nSt. Bernard,\nremote control",
        "names:\n  0: person\n  1: St. Bernard\n  2: remote control",
    ],
)
def test_forms_of_other_tools(text: str) -> None:
    assert Vocabulary.resolve(text) == Vocabulary.typed(text) == THREE


def test_dots_between_names_need_no_space_where_the_text_ends_with_one() -> None:
    assert Vocabulary.resolve("a cat. a remote control.").labels == ("a cat", "a remote control")
    assert Vocabulary.resolve("cat.").labels == ("cat",)
    assert Vocabulary.resolve("cat, kitten . dog .") == Vocabulary.parse("cat,kitten;dog")


@pytest.mark.parametrize(
    "name", ["St. Bernard", "U.S. flag", "7.5 inch", "3: 1", "- cat", "1. cat"]
)
def test_what_may_be_a_name_stays_one(name: str) -> None:
    assert Vocabulary.resolve(name).labels == (name,)
    assert Vocabulary.resolve(f"{name};dog").labels == (name, "dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1. cat\ndog\n3. cow", "line 2 has no number, others have; number all lines or none"),
        ("2. cat\n2. dog", "the numbers of the lines do not rise"),
        ("cat\ndog,,", "line 2: an empty name in 'dog,,'"),
        ("cat\ndog;;cow", "line 2: an empty name"),
        ("cat\nCat", "line 2: the label 'Cat' is already used"),
        ("cat . Cat .", "category 2: the label 'Cat' is already used"),
        ("[cat, dog", "not valid YAML"),
        ("[*a]", "line 1 has a YAML alias"),
        ("{cat: dog}", "no list 'categories' or 'names'"),
        ("[" * 200_000, "cannot be decoded as YAML"),
        ("{" * 200_000, "cannot be decoded as YAML"),
    ],
)
def test_what_is_ambiguous_is_one_line(text: str, message: str) -> None:
    message = message.replace("line 2: the label", "category 2: the label")
    with pytest.raises(VocabularyError, match=message) as caught:
        Vocabulary.resolve(text)
    assert len(str(caught.value)) < 250 and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.yaml", "path: ../x\nnc: 3\nnames: ['person', 'St. Bernard', 'remote control']\n"),
        ("data.YML", "names:\n  0: person\n  1: St. Bernard\n  2: remote control\n"),
        ("words.yaml", "- person\n- St. Bernard\n- remote control\n"),
        ("coco.names", "person\nSt. Bernard\nremote control\n"),
        ("numbered.txt", "\ufeff0: person\n1: St. Bernard\n2: remote control\n"),
        ("line.txt", "person;St. Bernard;remote control"),
        ("config.json", '{"id2label": {"0": "person", "1": "St. Bernard", "2": "remote control"}}'),
        ("classes.json", '{"classes": ["person", "St. Bernard", "remote control"], "x": 1}'),
        ("ids.json", '{"person": 1, "remote control": 3, "St. Bernard": 2}'),
        (
            "list.json",
            '[{"id": 3, "name": "remote control"}, {"id": 1, "name": "person"},'
            ' {"id": 2, "name": "St. Bernard"}]',
        ),
    ],
)
def test_files_of_other_tools(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content, "utf-8")
    assert Vocabulary.resolve(str(tmp_path / name)) == THREE


def test_an_object_from_labels_to_what_is_prompted(tmp_path: Path) -> None:
    expected = Vocabulary((Category("cat", ("cat", "kitten")), Category("item 1", ("cup",))))
    (tmp_path / "a.yaml").write_text("cat: [cat, kitten]\nitem 1: [cup]\n")
    assert Vocabulary.resolve(tmp_path / "a.yaml") == expected
    assert Vocabulary.resolve({"cat": ["cat", "kitten"], "item 1": ["cup"]}) == expected
    assert Vocabulary.resolve({0: "cat", 1: "dog"}).labels == ("cat", "dog")


def test_yaml_has_text_only(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("names: [no, on, null, 12, 0x1f, 2020-01-01, ~]")
    labels = Vocabulary.resolve(tmp_path / "a.yaml").labels
    assert labels == ("no", "on", "null", "12", "0x1f", "2020-01-01", "~")


BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)
)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.yaml", BOMB, r"^[^ ]*: line 2 has a YAML alias \(\*\.\.\.\); write it out"),
        ("a.yaml", "[" * 200_000, "cannot be decoded as YAML"),
        ("a.yaml", "names: [cat\nnc: 3", r"not valid YAML \(line 2, column 3: "),
        ("a.yaml", "names: !!python/object/apply:os.system ['echo hi']\nnc: 2", "but 'nc' says 2"),
        ("a.yaml", "names: coco.names", "'names': expected a list or an object, got 'coco.names'"),
        ("a.yaml", "names:\n  0: cat\n  0: dog", "^[^ ]*: the key '0' stands there twice"),
        ("a.yaml", "nc: 3\nnames: [cat, dog]", "2 names, but 'nc' says 3; correct one"),
        ("a.yaml", "? [a]\n: b", "not valid YAML .*unhashable"),
        ("a.yaml", "a: \x00", "cannot be decoded as YAML"),
        ("a.yaml", "x" * 10_000_001, "10,000,001 characters of YAML are too many"),
        ("a.yaml", "", "got NoneType|got str|vocabulary is empty"),
        ("a.yaml", "9" * 5_000, "expected a list of names"),
        ("a.json", '{"0": "cat", "0": "dog"}', "the key '0' stands there twice"),
        ("a.json", "[" * 200_000, "cannot be decoded"),
        ("a.json", '{"a":' * 200_000, "cannot be decoded"),
        ("a.json", "[" * 900 + "]" * 900, "category 1: a label must be a string"),
        ("a.json", "[[" + "9" * 4_000 + "]]", "a label must be a string, got 9"),
        ("a.json", '[["' + "x" * 10_000 + '", 3]]', "must be a string"),
        ("a.json", "1e999999", "got float"),
        ("a.json", '{"' + "9" * 5_000 + '": "cat"}', "no list 'categories' or 'names'"),
        ("a.json", '{"cat": "dog"}', "no list 'categories' or 'names'"),
        ("a.txt", "\x00" * 3, "vocabulary is empty|a label is empty"),
    ],
)
def test_files_that_mean_harm_are_one_line(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(VocabularyError, match=message) as caught:
        Vocabulary.resolve(str(tmp_path / name))
    said = str(caught.value).removeprefix(f"{tmp_path / name}: ")
    assert said != str(caught.value) and len(said) < 300


def test_what_is_no_regular_file_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    os.mkfifo(tmp_path / "pipe")
    for path, kind in (
        (tmp_path / "pipe.txt", "a named pipe, not a regular file"),
        (tmp_path / "pipe", "a named pipe, not a regular file"),
        ("/dev/zero", "a device, not a regular file"),
        (tmp_path, "Is a directory"),
    ):
        with pytest.raises(VocabularyError, match=rf"^{path}: cannot be read \({kind}\)"):
            Vocabulary.resolve(str(path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cat", "1 category: cat"),
        ("cat;dog", "2 categories: cat; dog"),
        ("cat,kitten;dog", "2 categories with 3 names: cat; dog"),
        (
            "headphone,webcam,paper",
            "1 category, 'headphone', with 3 names: headphone, webcam, paper; "
            "for 3 categories write headphone;webcam;paper",
        ),
        (
            "coco",
            "80 categories: person; bicycle; car; motorcycle; airplane; bus; train; truck; ...",
        ),
    ],
)
def test_how_it_was_understood(text: str, said: str) -> None:
    vocabulary = Vocabulary.resolve(text)
    assert vocabulary.describe() == said
    if len(vocabulary) == 1 and len(vocabulary.synonyms) > 1:  # the advice is right
        assert len(Vocabulary.resolve(said.rpartition("write ")[2])) == len(vocabulary.synonyms)


def test_what_would_be_read_as_numbered_is_not_saved_as_lines(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_names(["1. FC Nuremberg", "2. FC Cologne"])
    with pytest.raises(VocabularyError, match=r"would be read as numbered; use \.json"):
        vocabulary.save(tmp_path / "a.txt")
    vocabulary.save(tmp_path / "a.json")
    assert Vocabulary.from_file(tmp_path / "a.json") == vocabulary


@pytest.mark.parametrize("name", CLASS_LISTS)
def test_shipped_lists_survive_other_forms(name: str, tmp_path: Path) -> None:
    labels = Vocabulary.named(name).labels
    (tmp_path / "a.names").write_text("".join(f"{i}: {x}\n" for i, x in enumerate(labels)))
    if not any("," in label for label in labels):
        assert Vocabulary.resolve(tmp_path / "a.names").labels == labels
    (tmp_path / "a.yaml").write_text(
        "names:\n" + "".join(f"  {i}: {x!r}\n" for i, x in enumerate(labels) if "'" not in x)
    )
    found = Vocabulary.resolve(tmp_path / "a.yaml").labels
    assert found == tuple(label for label in labels if "'" not in label)


def test_any_text_is_a_vocabulary_or_one_line() -> None:
    rng = random.Random(0)
    read = 0
    for _ in range(2_000):
        text = "".join(rng.choices("ab ;,.\n:-1[]{}'\"*&#\t\u65e5\uff1b", k=rng.randint(0, 30)))
        try:
            read += bool(Vocabulary.typed(text).describe())
        except VocabularyError as error:
            assert len(str(error)) < 300, text
    assert 200 < read < 1_800


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('"cat";"dog"', ("cat", "dog")),
        ("'cat' ; \"traffic light\"", ("cat", "traffic light")),
        ("child's toy;cat", ("child's toy", "cat")),
        ("1\tcat\n2\tdog", ("cat", "dog")),
        ('"cat"\n"dog"', ("cat", "dog")),
    ],
)
def test_quotes_and_tabs(text, labels):
    assert Vocabulary.typed(text).labels == labels


def test_an_ideographic_comma_is_a_comma():
    assert Vocabulary.typed("\u732b\u3001\u72ac").synonyms == ("\u732b", "\u72ac")


def test_separators_of_other_tools_are_said():
    assert Vocabulary.typed("cat|dog").describe() == (
        "1 category: cat|dog; for several write ';' between them"
    )
