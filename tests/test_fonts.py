"""Labels in scripts that matplotlib's own font does not have."""

import logging
from collections import Counter

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from densedet import fonts
from densedet.visualization import draw_segments

IMAGE = np.full((60, 300, 3), 100, dtype=np.uint8)
MASK = np.ones((1, 60, 300), dtype=bool)


def make_font(path, name, characters):
    """A font in which each of the characters is a full black square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", *(f"u{ord(character):X}" for character in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"u{ord(c):X}" for c in characters})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=900, usWinAscent=900)
    builder.setupPost()
    builder.save(path)


@pytest.fixture(autouse=True)
def as_matplotlib_comes(monkeypatch):
    """Its own fonts alone, whatever this machine has, and nothing logged yet."""
    from detectron2.utils import logger

    manager = font_manager.fontManager
    own = [font for font in manager.ttflist if font.fname.startswith(matplotlib.get_data_path())]
    monkeypatch.setattr(manager, "ttflist", own)
    monkeypatch.setattr(font_manager, "X11FontDirectories", [])
    monkeypatch.setattr(font_manager, "_get_fontconfig_fonts", list)
    monkeypatch.setattr(logger, "_LOG_COUNTER", Counter())
    fonts._add_new_fonts.cache_clear()
    yield
    fonts._add_new_fonts.cache_clear()
    manager._findfont_cached.cache_clear()


@pytest.mark.parametrize(
    "text", ["cat 87%", "кошка γάτα", "قطة", "קאַץ", "a  b\n\u200d", "😀\ufe0f", ""]
)
def test_the_usual_font_is_enough(text, caplog):
    assert fonts.families(text) == ["sans-serif"] and not caplog.records


def test_a_font_that_has_the_letters_draws_them(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        before = draw_segments(IMAGE, MASK, ["猫"], [None], smallest_side=60)
    make_font(tmp_path / "a.ttf", "Squares", "猫犬")
    font_manager.fontManager.addfont(tmp_path / "a.ttf")
    assert fonts.families("猫 cat 犬") == ["sans-serif", "Squares"]
    caplog.clear()
    drawn = draw_segments(IMAGE, MASK, ["猫"], [None], smallest_side=60)
    assert not caplog.records
    white = (drawn > 150).all(axis=2), (before > 150).all(axis=2)
    rows, columns = np.nonzero(white[0])
    box = white[0][rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert box.mean() > 0.9 and white[0].sum() > white[1].sum()  # the square, not a hollow box


def test_fonts_of_several_scripts_are_joined(tmp_path):
    for name, characters in (("One Sans", "猫"), ("Two", "猫犬ท"), ("Noto Color Emoji", "🦊ท")):
        make_font(tmp_path / "a.ttf", name, characters)
        font_manager.fontManager.addfont((tmp_path / "a.ttf").rename(tmp_path / f"{name}.ttf"))
    assert fonts.families("猫") == ["sans-serif", "One Sans"]
    assert fonts.families("猫犬") == ["sans-serif", "Two"]
    assert fonts.families("ท🦊") == ["sans-serif", "Two"]


def test_a_font_that_was_installed_since_is_found(tmp_path, monkeypatch):
    """matplotlib keeps a list of the fonts that there were when it first ran."""
    make_font(tmp_path / "new.ttf", "New Squares", "猫")
    (tmp_path / "damaged.ttf").write_bytes((tmp_path / "new.ttf").read_bytes()[:100])
    monkeypatch.setattr(font_manager, "X11FontDirectories", [str(tmp_path)])
    assert fonts.families("猫") == ["sans-serif", "New Squares"]


@pytest.mark.parametrize(
    ("text", "lacking", "packages"),
    [
        ("猫 cat", "猫", "fonts-noto-cjk"),
        ("ネコ", "コネ", "fonts-noto-cjk"),
        ("고양이", "고양이", "fonts-noto-cjk"),
        ("🦊", "🦊", "fonts-symbola"),
        ("แมว", "มวแ", "fonts-noto-core"),
        ("猫🦊ท", "ท猫🦊", "fonts-noto-cjk fonts-noto-core fonts-symbola"),
    ],
)
def test_where_no_font_has_the_letters_one_line_names_the_package(
    text, lacking, packages, caplog, recwarn
):
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            draw_segments(IMAGE, MASK, [text], [None], smallest_side=60)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"no installed font has {lacking!r}: on Debian, apt install {packages}; or put a font "
        "into ~/.local/share/fonts"
    )
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


@pytest.mark.parametrize(("version", "lines"), [((3, 10), 1), ((3, 11), 0)])
def test_an_old_matplotlib_is_said_to_write_arabic_backwards(monkeypatch, caplog, version, lines):
    info = matplotlib.__version_info__._replace(major=version[0], minor=version[1])
    monkeypatch.setattr(matplotlib, "__version_info__", info)
    fonts.families("cat")
    fonts.families("قطة")
    assert len(caplog.records) == lines
