"""Scenes and image-caption pairs of Shapes World.

A scene is a picture with its exact annotation, as the renderer knows it. A pair is a small picture
with a sentence and nothing else, as a web crawl would give it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from densedet.data.shapes_world_render import COLOURS, KINDS, Rng, develop, draw_stuff, draw_thing

SCENE_SIZE = 160
PAIR_SIZE = 56
SMALLEST_RADIUS, LARGEST_RADIUS = 11.0, 35.0
LEAST_VISIBLE = 0.35

_STREAMS = {"train": 0, "val": 1, "pairs": 2}
_ARTICLES = ("a ", "a ", "the ", "")
_CAPTIONS = ("{}", "a photo of {}.", "a picture of {}.", "there is {}.", "an image with {}")


@dataclass(frozen=True)
class Thing:
    """One visible object of a scene: its label ("red dice") and visible pixels (H, W) bool."""

    label: str
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """A picture (H, W, 3) uint8 RGB with its things, stuff regions and caption.

    ``stuff`` holds (name, visible mask (H, W) bool) from top to bottom. Every pixel belongs to
    exactly one thing or stuff region.
    """

    image: NDArray[np.uint8]
    things: tuple[Thing, ...]
    stuff: tuple[tuple[str, NDArray[np.bool_]], ...]
    caption: str


def stream(seed: int, split: str, index: int) -> Rng:
    """The random generator of one picture: depends on nothing but its arguments."""
    return np.random.default_rng([seed, _STREAMS[split], index])


def _random_label(rng: Rng) -> tuple[str, str]:
    colour, kind = rng.integers(0, len(COLOURS)), rng.integers(0, len(KINDS))
    return list(COLOURS)[colour], list(KINDS)[kind]


def _phrase(name: str, rng: Rng) -> str:
    return _ARTICLES[rng.integers(0, len(_ARTICLES))] + name


def write_caption(things: list[str], stuff: list[str], rng: Rng) -> str:
    """One sentence that names the things, and the stuff in 30 % of the cases (or if alone)."""
    if not things:
        return _CAPTIONS[rng.integers(0, len(_CAPTIONS))].format(
            " and ".join(_phrase(name, rng) for name in stuff)
        )
    phrases = [_phrase(name, rng) for name in rng.permutation(things)]
    text = " and ".join(phrases)
    if rng.random() < 0.3:
        text += f" on {stuff[-1]}"
    return _CAPTIONS[rng.integers(0, len(_CAPTIONS))].format(text)


def _place(count: int, rng: Rng) -> list[tuple[float, float, float]]:
    """Up to ``count`` circles (x, y, radius); centres at least 0.75 of the summed radii apart."""
    low, high = np.log([SMALLEST_RADIUS, LARGEST_RADIUS])
    placed: list[tuple[float, float, float]] = []
    for radius in np.exp(np.sort(rng.uniform(low, high, size=count))[::-1]):
        for _ in range(30):
            margin = 0.8 * radius
            x, y = rng.uniform(margin, SCENE_SIZE - margin, size=2)
            if all(np.hypot(x - a, y - b) >= 0.75 * (radius + r) for a, b, r in placed):
                placed.append((float(x), float(y), float(radius)))
                break
    return placed


def make_scene(seed: int, split: str, index: int) -> Scene:
    """Draw scene ``index`` of ``split`` ("train" or "val"): 160 x 160 pixels, 4 to 8 objects.

    Objects of which less than 35 % would be visible are left out of the picture.
    """
    rng = stream(seed, split, index)
    canvas, region, stuff_names = draw_stuff(SCENE_SIZE, SCENE_SIZE, rng)
    owner = np.full(region.shape, -1, dtype=np.int64)
    labels: list[str] = []
    full_areas: list[int] = []
    for x, y, radius in _place(int(rng.integers(4, 9)), rng):
        colour, kind = _random_label(rng)
        layer = canvas.copy()
        covered = draw_thing(layer, colour, kind, (x, y), radius, rng)
        hidden = np.bincount(owner[covered & (owner >= 0)], minlength=len(labels))
        left = np.bincount(owner[owner >= 0], minlength=len(labels)) - hidden
        if any(left < LEAST_VISIBLE * np.array(full_areas)):
            continue
        canvas = layer
        owner[covered] = len(labels)
        labels.append(f"{colour} {kind}")
        full_areas.append(int(covered.sum()))
    things = tuple(Thing(label, owner == i) for i, label in enumerate(labels))
    stuff = tuple((n, (region == i) & (owner < 0)) for i, n in enumerate(stuff_names))
    stuff = tuple((name, mask) for name, mask in stuff if mask.any())
    caption = write_caption(labels, [name for name, _ in stuff] or stuff_names, rng)
    return Scene(develop(canvas, rng), things, stuff, caption)


def make_pair(seed: int, index: int) -> tuple[NDArray[np.uint8], str]:
    """Draw image-caption pair ``index``: (56, 56, 3) uint8 RGB and one sentence.

    10 % show stuff only, 62 % one dominant object, 18 % two, 10 % three.
    """
    rng = stream(seed, "pairs", index)
    canvas, _, stuff = draw_stuff(PAIR_SIZE, PAIR_SIZE, rng, most=2)
    count = int(rng.choice(4, p=[0.10, 0.62, 0.18, 0.10]))
    labels: list[str] = []
    for position in range(count):
        colour, kind = _random_label(rng)
        if count == 1:
            radius = rng.uniform(0.22, 0.56) * PAIR_SIZE
            x, y = PAIR_SIZE / 2 + rng.uniform(-0.22, 0.22, size=2) * PAIR_SIZE
        else:
            radius = rng.uniform(0.17, 0.27) * PAIR_SIZE
            angle = 2 * np.pi * position / count + rng.uniform(-0.4, 0.4)
            x = PAIR_SIZE / 2 + 0.27 * PAIR_SIZE * np.cos(angle)
            y = PAIR_SIZE / 2 + 0.27 * PAIR_SIZE * np.sin(angle)
        draw_thing(canvas, colour, kind, (float(x), float(y)), float(radius), rng)
        labels.append(f"{colour} {kind}")
    return develop(canvas, rng), write_caption(labels, stuff, rng)
