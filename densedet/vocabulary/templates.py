"""Prompt templates: one name in, the sentences that are embedded and averaged out.

Sets: "plain" (the bare name), "single" ("a photo of a X."), "clipself63" (the 63 sentences that
CLIPSelf, arXiv 2310.01403, takes from ViLD, arXiv 2104.13921, in the order of its embeddings) and
"clip80" (the 80 ImageNet sentences of CLIP, arXiv 2103.00020).
"""

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType

from densedet.errors import VocabularyError

_QUALITY = ("low resolution", "cropped", "close-up", "jpeg corrupted", "blurry", "pixelated")


def clean_name(name: str) -> str:
    """ViLD's cleaning: "_" -> " ", "/" -> " or ", lower case, trailing dots removed.

    Hyphens and brackets stay: "arctic_(type_of_shoe)" -> "arctic (type of shoe)".
    """
    return name.replace("_", " ").replace("/", " or ").lower().rstrip(".")


def render_prompts(name: str, template_set: str) -> list[str]:
    """The prompts of one name.

    Args:
        name: a label or synonym; underscores become spaces in every set, and "clipself63" cleans it
            as :func:`clean_name` does.
        template_set: one of :data:`TEMPLATE_SETS`.

    Returns:
        1 ("plain", "single"), 63 or 80 distinct sentences in a fixed order.

    Raises:
        VocabularyError: unknown template set, or an empty name.
    """
    if template_set not in _RENDERERS:
        raise VocabularyError(
            f"no template set named {template_set!r}; choose one of {', '.join(TEMPLATE_SETS)}"
        )
    if not name.replace("_", " ").strip():
        raise VocabularyError(f"cannot make prompts of the empty name {name!r}")
    return _RENDERERS[template_set](name)


def _spaced(name: str) -> str:
    return name.replace("_", " ").strip()


def _plain(name: str) -> list[str]:
    return [_spaced(name)]


# Words whose first letter misleads: "a unicycle", "an hourglass".
_SILENT_H = re.compile(r"hour|honest|honou?r|heir", re.IGNORECASE)
_CONSONANT_SOUND = re.compile(r"uni(?![nm])|us[eu]|ut[ei]|uri|uku|eu|ewe|one\b", re.IGNORECASE)


def _article(name: str) -> str:
    if _SILENT_H.match(name):
        return "an"
    return "an" if name[0].lower() in "aeiou" and not _CONSONANT_SOUND.match(name) else "a"


def _single(name: str) -> list[str]:
    name = _spaced(name)
    return [f"a photo of {_article(name)} {name}."]


def _adjective_photo(adjective: str) -> tuple[str, str]:
    return f"a {adjective} photo of {{a}} {{x}}.", f"a {adjective} photo of the {{x}}."


def _photo_of_adjective(adjective: str) -> tuple[str, str]:
    return f"a photo of a {adjective} {{x}}.", f"a photo of the {adjective} {{x}}."


def _noun(article: str, noun: str) -> tuple[str, str]:
    return f"{article} {noun} {{x}}.", f"the {noun} {{x}}."


def _clipself_templates() -> tuple[str, ...]:
    """ViLD's sentences with {x} for the name and {a} for its article, before "This is "."""
    conditions = ("nice", "cool", "weird", "small", "large", "clean", "dirty")
    the_black_and_white = tuple(reversed(_adjective_photo("black and white")))
    return (
        *(f"There is {word} {{x}} in the scene." for word in ("{a}", "the")),
        *(f"a photo of {word} {{x}} in the scene." for word in ("{a}", "the", "one")),
        *(f"itap of {word} {{x}}." for word in ("{a}", "my", "the")),
        *(f"a photo of {word} {{x}}." for word in ("{a}", "my", "the", "one", "many")),
        *(text for word in ("good", "bad") for text in _adjective_photo(word)),
        *(text for word in conditions for text in _photo_of_adjective(word)),
        *(text for word in ("bright", "dark") for text in _adjective_photo(word)),
        *_photo_of_adjective("hard to see"),
        *(text for word in _QUALITY for text in _adjective_photo(word)),
        *the_black_and_white,
        *(text for word in ("plastic", "toy", "plushie", "cartoon") for text in _noun("a", word)),
        *_noun("an", "embroidered"),
        "a painting of the {x}.",
        "a painting of a {x}.",
    )


def _clipself63(name: str) -> list[str]:
    # The article looks at the raw name and is case sensitive: "a umbrella" for "Umbrella".
    article = "an" if name[0] in "aeiou" else "a"
    prompts = []
    for template in _clipself_templates():
        prefix = "This is " if template.startswith(("a", "the")) else ""
        prompts.append(prefix + template.format(a=article, x=clean_name(name)))
    return prompts


def _clip80(name: str) -> list[str]:
    """CLIP's sentences; the article is always "a", as in the original."""
    looks = ("bad", "good", "bright", "dark", "black and white", *_QUALITY)
    conditions = ("hard to see", "clean", "dirty", "cool", "nice", "small", "weird", "large")
    works = ("sculpture", "rendering", "tattoo", "drawing", "painting", "doodle", "sketch")
    arts = (*(f"a {work}" for work in (*works, "rendition")), "graffiti", "art")
    nouns = ("plastic", "origami", "toy", "embroidered", "cartoon", "plushie")
    templates = (
        *(f"a photo of {word} {{x}}." for word in ("a", "my", "the", "one", "many")),
        *(f"itap of {word} {{x}}." for word in ("a", "my", "the")),
        *(text for word in looks for text in _adjective_photo(word)),
        *(text for word in conditions for text in _photo_of_adjective(word)),
        *(f"{art} of {word} {{x}}." for art in arts for word in ("a", "the")),
        *(text for word in nouns for text in _noun("a", word)),
        *(f"{word} {{x}} in a video game." for word in ("a", "the")),
    )
    return [template.format(a="a", x=_spaced(name)) for template in templates]


_RENDERERS: Mapping[str, Callable[[str], list[str]]] = MappingProxyType(
    {"plain": _plain, "single": _single, "clipself63": _clipself63, "clip80": _clip80}
)
TEMPLATE_SETS: tuple[str, ...] = tuple(_RENDERERS)
"""The names that :func:`render_prompts` knows."""
