"""What the web page takes from strangers, and what it refuses."""

import numpy as np
import pytest
from PIL import Image

from densedet.errors import ImageError, VocabularyError
from densedet.vocabulary import Vocabulary
from densedet.web import (
    MOST_CHARACTERS,
    MOST_SCORES,
    check_length,
    check_scores,
    read_picture,
    read_words,
)


def test_a_small_picture_is_read_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_picture(str(tmp_path / "a.png")), pixels)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 640), (640, 640, 3)),
        ((2048, 1024), (320, 640, 3)),
        ((5000, 4000), (512, 640, 3)),
        ((3000, 2), (1, 640, 3)),
    ],
)
def test_up_to_20_megapixels_are_made_smaller(tmp_path, size, expected):
    Image.new("L", size, 200).save(tmp_path / "a.png", compress_level=1)
    picture = read_picture(str(tmp_path / "a.png"))
    assert picture.shape == expected and (picture == 200).all()


@pytest.mark.parametrize("size", [(5000, 4001), (10_000, 5_000)])
def test_more_is_refused_by_the_header_alone(tmp_path, size):
    path = tmp_path / "large.png"
    Image.new("1", size).save(path)
    path.write_bytes(path.read_bytes()[:100])  # the pixels are never asked for
    with pytest.raises(ImageError) as caught:
        read_picture(str(path))
    assert str(caught.value) == (
        f"large.png has {size[0]:,} x {size[1]:,} pixels, {size[0] * size[1] / 1e6:.1f} million; "
        "this page takes 20 million: make it smaller"
    )


def test_what_is_no_picture_is_refused_without_its_folder(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(ImageError, match="^text.jpg is not an image") as caught:
        read_picture(str(tmp_path / "text.jpg"))
    assert str(tmp_path) not in str(caught.value)
    Image.new("RGB", (64, 64)).save(tmp_path / "half.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "half.jpg").read_bytes()[:-200])
    with pytest.raises(ImageError, match="truncated or corrupt") as caught:
        read_picture(str(tmp_path / "half.jpg"))
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("kind", ["EPS", "PCX"])
def test_formats_that_the_web_has_no_use_for_are_refused(tmp_path, kind):
    """Pillow itself reads them, and of an EPS starts another program."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", format=kind)
    with pytest.raises(ImageError, match="^a.jpg is not an image"):
        read_picture(str(tmp_path / "a.jpg"))


@pytest.mark.parametrize(
    "text",
    [
        "cat,kitten;remote control",
        "cat, kitten\nremote control;\n",
        " cat,kitten ;\n\nremote control",
    ],
)
def test_lines_and_semicolons(text):
    assert read_words(text) == Vocabulary.parse("cat,kitten;remote control")


@pytest.mark.parametrize(
    "text", ["cat . dog .", "1. cat\n2. dog", "['cat', 'dog']", "cat\uff1bdog"]
)
def test_forms_of_other_tools(text):
    assert read_words(text) == Vocabulary.parse("cat;dog")
    assert read_words("sky", text).kinds == ("thing", "stuff", "stuff")
    with pytest.raises(VocabularyError, match="1,001 words are too many"):
        read_words(" . ".join(f"word {i}" for i in range(1001)))


def test_stuff():
    found = read_words("cat", "grass;\nsky")
    assert found == Vocabulary.parse("cat").with_stuff(Vocabulary.parse("grass;sky"))
    assert read_words("cat", " \n") == Vocabulary.parse("cat")


def test_text_is_no_file_and_no_class_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.txt").write_text("password")
    assert read_words("secret.txt").labels == ("secret.txt",)
    assert read_words("coco").labels == ("coco",)


@pytest.mark.parametrize("stuff", ["", "sky,heaven"])
def test_a_thousand_words(stuff):
    others = stuff.count(",") + 1 if stuff else 0
    names = [f"word {i}" for i in range(1000 - others)]
    assert len(read_words(";".join(names), stuff).synonyms) == 1000
    for separator in (";", ",", "\n"):
        with pytest.raises(
            VocabularyError, match="1,001 words are too many: this page takes 1,000"
        ):
            read_words(separator.join([*names, "one more"]), stuff)


def test_length():
    check_length("a" * MOST_CHARACTERS)
    with pytest.raises(VocabularyError, match="32,001 characters are too many"):
        read_words("a" * (MOST_CHARACTERS + 1))


def test_many_long_words_are_told_as_many_words():
    with pytest.raises(VocabularyError, match="5,000 words are too many"):
        read_words(";".join(f"a rather long word {i}" for i in range(5000)))


@pytest.mark.parametrize("text", ["", " \n", ";"])
def test_no_words(text):
    with pytest.raises(VocabularyError, match="no words"):
        read_words(text, "sky")


def test_scores():
    """Of a million pixels so many categories, and no more."""
    image = np.empty((1000, 1000, 3), np.uint8)
    most = MOST_SCORES // 10**6
    check_scores(read_words(";".join(f"word {i}" for i in range(most))), image)
    with pytest.raises(
        VocabularyError, match=f"{most + 1} categories .* take {most}, or a smaller"
    ):
        check_scores(read_words(";".join(f"word {i}" for i in range(most + 1))), image)
