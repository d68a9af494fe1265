"""What a Shapes World data set is made of; no heavy import, so that tools say their defaults."""

from dataclasses import dataclass

FORMAT_VERSION = 2


@dataclass(frozen=True)
class ShapesWorldRecipe:
    """What a data set is made of; the same recipe gives the same bytes.

    Attributes:
        train: training scenes.
        val: validation scenes.
        pairs: image-caption pairs.
        seed: of every random choice.
        version: of the renderer and the file layout.
    """

    train: int = 600
    val: int = 300
    pairs: int = 0
    seed: int = 0
    version: int = FORMAT_VERSION
