"""Fonts for labels in any script.

matplotlib draws each character with the first font of a list that has it. Its own, DejaVu Sans, has
Latin, Greek, Cyrillic, Arabic, Hebrew and some emoji; for others this looks among those installed.
"""

import functools
import logging
import unicodedata

import matplotlib
from detectron2.utils.logger import log_first_n
from matplotlib import font_manager

_DEFAULT = "sans-serif"
_UNFIT = ("Last Resort", "Color Emoji")  # boxes for all characters; bitmaps, which are not drawn
_CJK = (
    "CJK",
    "HIRAGANA",
    "KATAKANA",
    "HANGUL",
    "BOPOMOFO",
    "FULLWIDTH",
    "HALFWIDTH",
    "IDEOGRAPHIC",
)
_SHAPING = (3, 11)  # the first matplotlib that joins letters and writes from right to left


def families(text: str) -> list[str]:
    """Families of fonts that together have the characters of a text, the usual one first.

    Where no installed font has one of them, a line in the log names the package to install.
    """
    _warn_of_direction(text)
    usual = font_manager.findfont(font_manager.FontProperties(family=[_DEFAULT]))
    missing = {c for c in text if _is_drawn(c)} - _characters(usual)
    found: list[str] = []
    for look_for_new in (False, True):
        if missing and look_for_new:
            _add_new_fonts()
        while missing and (best := _best(missing)) is not None:
            family, path = best
            found.append(family)
            missing -= _characters(path)
    if missing:
        lacking = "".join(sorted(missing)[:20])
        packages = " ".join(sorted({_package(character) for character in missing}))
        log_first_n(
            logging.WARNING,
            f"no installed font has {lacking!r}: on Debian, apt install {packages}; or put a font "
            "into ~/.local/share/fonts",
            key="message",
            name=__name__,
        )
    return [_DEFAULT, *found]


def runs(text: str) -> list[tuple[str, str]]:
    """Parts of a text, in order, and for each the file of a font that has its characters.

    For what draws with one font at a time; of `families`, the first that has a character draws it.
    A character that none has is drawn by the usual font.
    """
    files = [
        font_manager.findfont(font_manager.FontProperties(family=[family]))
        for family in families(text)
    ]
    parts: list[tuple[str, str]] = []
    for character in text:
        path = next((file for file in files if character in _characters(file)), files[0])
        if parts and (path == parts[-1][1] or not _is_drawn(character)):
            parts[-1] = (parts[-1][0] + character, parts[-1][1])
        else:
            parts.append((character, path))
    return parts


def _is_drawn(character: str) -> bool:
    """Not white space, a control, or a mark that only changes the form of its neighbours."""
    return unicodedata.category(character)[0] not in "ZC" and not "\ufe00" <= character <= "\ufe0f"


def _best(characters: set[str]) -> tuple[str, str] | None:
    """Family and file of the font that has most of them; among equals, a plain one."""
    best, most = None, (0, False, False)
    for font in font_manager.fontManager.ttflist:
        if font.style != "normal" or any(name in font.name for name in _UNFIT):
            continue
        count = len(characters & _characters(font.fname))
        rank = (count, "Sans" in font.name, font.weight in (400, "normal", "regular"))
        if count and rank > most:
            best, most = (font.name, font.fname), rank
    return best


@functools.cache
def _characters(path: str) -> frozenset[str]:
    """The characters of a font file; none if it cannot be read."""
    try:
        return frozenset(map(chr, font_manager.get_font(path).get_charmap()))
    except (OSError, RuntimeError):
        return frozenset()


@functools.cache
def _add_new_fonts() -> None:
    """Fonts that were installed after matplotlib wrote its list of them; once a process."""
    known = {font.fname for font in font_manager.fontManager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        try:
            font_manager.fontManager.addfont(path)
        except (OSError, RuntimeError):  # a damaged font is none
            continue


def _package(character: str) -> str:
    """Debian's package with a font for a character."""
    if unicodedata.name(character, "").startswith(_CJK):
        return "fonts-noto-cjk"
    symbol = unicodedata.category(character) in ("So", "Sk", "Sm") or ord(character) >= 0x1F000
    return "fonts-symbola" if symbol else "fonts-noto-core"


def _warn_of_direction(text: str) -> None:
    version = matplotlib.__version_info__
    if (version.major, version.minor) < _SHAPING and any(
        unicodedata.bidirectional(character) in ("R", "AL") for character in text
    ):
        log_first_n(
            logging.WARNING,
            f"matplotlib {matplotlib.__version__} draws Arabic and Hebrew from left to right and "
            "letter by letter: pip install 'matplotlib>=3.11'",
            name=__name__,
        )
