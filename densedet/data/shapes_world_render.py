"""The renderer of Shapes World: coloured things with outlines and surfaces on textured stuff.

Everything is drawn with numpy from a `numpy.random.Generator`; the same generator state gives the
same pixels. Outlines are signed distance functions in units of the object's radius (negative
inside), so that edges are anti-aliased at every size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rng = np.random.Generator

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (242, 132, 30),
    "yellow": (240, 214, 50),
    "green": (50, 165, 70),
    "cyan": (60, 205, 215),
    "blue": (45, 85, 205),
    "purple": (145, 60, 180),
    "white": (235, 235, 235),
}


def _star(x: Array, y: Array) -> Array:
    """Five-pointed star: fold the plane into one arm, then the distance to its edge."""
    kx, ky = 0.809016994375, -0.587785252292
    x, y = np.abs(x), -y
    for sign in (1.0, -1.0):
        fold = 2.0 * np.maximum(sign * kx * x + ky * y, 0.0)
        x, y = x - fold * sign * kx, y - fold * ky
    x, y = np.abs(x), y - 1.0
    edge_x, edge_y = 0.45 * -ky, 0.45 * kx - 1.0
    along = np.clip((x * edge_x + y * edge_y) / (edge_x**2 + edge_y**2), 0.0, 1.0)
    distance = np.hypot(x - edge_x * along, y - edge_y * along)
    return distance * np.sign(y * edge_x - x * edge_y)


def _ring(x: Array, y: Array) -> Array:
    return np.abs(np.hypot(x, y) - 0.7) - 0.28


def _ball(x: Array, y: Array) -> Array:
    return np.hypot(x, y) - 0.95


def _plus(x: Array, y: Array) -> Array:
    across = np.maximum(np.abs(x) - 0.98, np.abs(y) - 0.36)
    upright = np.maximum(np.abs(x) - 0.36, np.abs(y) - 0.98)
    return np.minimum(across, upright)


def _dice(x: Array, y: Array) -> Array:
    return np.maximum(np.abs(x), np.abs(y)) - 0.82


def _heart(x: Array, y: Array) -> Array:
    x, y = np.abs(x) * 0.58, 0.55 - y * 0.58
    lobe = np.hypot(x - 0.25, y - 0.75) - np.sqrt(2.0) / 4.0
    half = 0.5 * np.maximum(x + y, 0.0)
    flank = np.minimum(np.hypot(x, y - 1.0), np.hypot(x - half, y - half)) * np.sign(x - y)
    return np.where(x + y > 1.0, lobe, flank) / 0.58


def _kite(x: Array, y: Array) -> Array:
    return (np.abs(x) / 0.74 + np.abs(y) - 1.0) * 0.6


def _cone(x: Array, y: Array) -> Array:
    side = np.abs(x) * 0.894 - (y + 0.95) * 0.447
    return np.maximum(side, y - 0.85)


def _plain(x: Array, y: Array) -> Array:
    return np.zeros_like(x)


def _striped(x: Array, y: Array) -> Array:
    return (np.sin(y * 2.0 * np.pi / 0.56) > 0.0).astype(float)


def _dotted(x: Array, y: Array) -> Array:
    to_centre = [(c / 0.6 + 0.5) % 1.0 - 0.5 for c in (x, y)]
    return (np.hypot(*to_centre) < 0.27).astype(float)


def _checkered(x: Array, y: Array) -> Array:
    return ((np.floor(x / 0.36) + np.floor(y / 0.36)) % 2 == 0).astype(float)


@dataclass(frozen=True)
class Kind:
    """How a kind of thing looks: its outline and where its surface is dark (1) or light (0)."""

    outline: Callable[[Array, Array], Array]
    surface: Callable[[Array, Array], Array]


KINDS: dict[str, Kind] = {
    "star": Kind(_star, _plain),
    "ring": Kind(_ring, _plain),
    "ball": Kind(_ball, _striped),
    "plus": Kind(_plus, _striped),
    "dice": Kind(_dice, _dotted),
    "heart": Kind(_heart, _dotted),
    "kite": Kind(_kite, _checkered),
    "cone": Kind(_cone, _checkered),
}

DARK_TONE = 0.38
NOISE_SIGMA = 5.0


def draw_thing(
    canvas: Array, colour: str, kind: str, centre: tuple[float, float], radius: float, rng: Rng
) -> NDArray[np.bool_]:
    """Draw one thing over the canvas and return the pixels it covers.

    Args:
        canvas: (H, W, 3) float64 in 0..255, changed in place.
        colour: a key of `COLOURS`.
        kind: a key of `KINDS`.
        centre: (x, y) in pixels; may lie outside the canvas.
        radius: in pixels.
        rng: draws rotation, aspect ratio, colour jitter, light and rim.

    Returns:
        (H, W) bool mask of the pixels covered by at least one half.
    """
    height, width = canvas.shape[:2]
    angle = rng.uniform(-0.35, 0.35)
    stretch = np.sqrt(rng.uniform(0.88, 1.12))
    base = np.array(COLOURS[colour], dtype=float) + rng.uniform(-16, 16, size=3)
    light = rng.uniform(0, 2 * np.pi)
    reach = int(np.ceil(radius * 1.25)) + 2
    x0, x1 = max(int(centre[0]) - reach, 0), min(int(centre[0]) + reach + 1, width)
    y0, y1 = max(int(centre[1]) - reach, 0), min(int(centre[1]) + reach + 1, height)
    covered = np.zeros((height, width), dtype=bool)
    if x0 >= x1 or y0 >= y1:
        return covered
    dx = (np.arange(x0, x1) + 0.5 - centre[0])[None, :] / radius
    dy = (np.arange(y0, y1) + 0.5 - centre[1])[:, None] / radius
    x = (np.cos(angle) * dx + np.sin(angle) * dy) / stretch
    y = (-np.sin(angle) * dx + np.cos(angle) * dy) * stretch
    distance = KINDS[kind].outline(x, y)
    alpha = np.clip(0.5 - distance * radius, 0.0, 1.0)
    tone = 1.0 - (1.0 - DARK_TONE) * KINDS[kind].surface(x, y)
    tone = tone * (1.0 + 0.12 * (np.cos(light) * dx + np.sin(light) * dy))
    tone = tone * np.where(distance > -0.10, 0.72, 1.0)
    paint = np.clip(base[None, None] * tone[..., None], 0.0, 255.0)
    window = canvas[y0:y1, x0:x1]
    window += alpha[..., None] * (paint - window)
    covered[y0:y1, x0:x1] = alpha >= 0.5
    return covered


def _smooth_noise(height: int, width: int, cells_y: int, cells_x: int, rng: Rng) -> Array:
    """Bilinear interpolation of a (cells_y + 1) x (cells_x + 1) grid of uniform values in -1..1."""
    grid = rng.uniform(-1, 1, size=(cells_y + 1, cells_x + 1))
    fy = np.linspace(0, cells_y, height, endpoint=False)
    fx = np.linspace(0, cells_x, width, endpoint=False)
    iy, ix = fy.astype(int), fx.astype(int)
    ty, tx = (fy - iy)[:, None], (fx - ix)[None, :]
    top = grid[iy][:, ix] * (1 - tx) + grid[iy][:, ix + 1] * tx
    low = grid[iy + 1][:, ix] * (1 - tx) + grid[iy + 1][:, ix + 1] * tx
    return top * (1 - ty) + low * ty


def _tinted(base: tuple[int, int, int], tone: Array) -> Array:
    return np.array(base, dtype=float)[None, None] * (1.0 + tone[..., None])


def _sky(height: int, width: int, rng: Rng) -> Array:
    fall = np.linspace(0.12, -0.06, height)[:, None]
    return _tinted((150, 190, 232), fall + 0.07 * _smooth_noise(height, width, 4, 3, rng))


def _grass(height: int, width: int, rng: Rng) -> Array:
    blades = _smooth_noise(height, width, max(height // 6, 1), max(width // 2, 1), rng)
    return _tinted((96, 140, 58), 0.28 * blades)


def _sand(height: int, width: int, rng: Rng) -> Array:
    grains = rng.uniform(-1, 1, size=(height, width))
    return _tinted((214, 190, 140), 0.10 * grains + 0.05 * _smooth_noise(height, width, 3, 3, rng))


def _brick(height: int, width: int, rng: Rng) -> Array:
    rows, offset = 10, rng.integers(0, 20, size=2)
    y = np.arange(height)[:, None] + offset[0]
    x = np.arange(width)[None, :] + offset[1] + 10 * ((y // rows) % 2)
    mortar = ((y % rows) < 2) | ((x % 20) < 2)
    wall = _tinted((158, 88, 70), 0.10 * _smooth_noise(height, width, 8, 6, rng))
    return np.where(mortar[..., None], 186.0, wall)


def _water(height: int, width: int, rng: Rng) -> Array:
    y, x = np.arange(height)[:, None], np.arange(width)[None, :]
    phase = rng.uniform(0, 2 * np.pi, size=2)
    waves = np.sin(y / 2.2 + 1.6 * np.sin(x / 9.0 + phase[0]) + phase[1])
    return _tinted((48, 110, 150), 0.22 * waves)


def _wood(height: int, width: int, rng: Rng) -> Array:
    grain = _smooth_noise(height, width, 3, max(width // 5, 1), rng)
    return _tinted((140, 98, 58), 0.25 * grain + 0.08 * np.sin(np.arange(width) / 1.7)[None, :])


STUFF: dict[str, Callable[[int, int, Rng], Array]] = {
    "sky": _sky,
    "grass": _grass,
    "sand": _sand,
    "brick": _brick,
    "water": _water,
    "wood": _wood,
}


def draw_stuff(
    height: int, width: int, rng: Rng, most: int = 3
) -> tuple[Array, NDArray[np.int64], list[str]]:
    """Fill a canvas with 1 to ``most`` horizontal regions with wavy borders.

    Returns:
        The canvas (H, W, 3) float64 in 0..255, the region index of each pixel (H, W) int64, and
        the stuff names of the regions from top to bottom, all different.
    """
    count = int(rng.integers(1, most + 1))
    names = [str(n) for n in rng.permutation(list(STUFF))[:count]]
    borders = np.sort(rng.uniform(0.2, 0.8, size=count - 1)) * height
    x = np.arange(width)
    region = np.zeros((height, width), dtype=np.int64)
    for border in borders:
        wave = (
            rng.uniform(0.02, 0.06)
            * height
            * np.sin(x / width * 2 * np.pi * rng.uniform(0.6, 2.2) + rng.uniform(0, 2 * np.pi))
        )
        region += np.arange(height)[:, None] >= (border + wave)[None, :]
    canvas = np.zeros((height, width, 3))
    for index, name in enumerate(names):
        inside = region == index
        canvas[inside] = STUFF[name](height, width, rng)[inside]
    return canvas, region, names


def develop(canvas: Array, rng: Rng) -> NDArray[np.uint8]:
    """Brightness and sensor noise, then (H, W, 3) uint8 RGB."""
    exposed = canvas * rng.uniform(0.88, 1.10)
    exposed = exposed + rng.normal(0.0, NOISE_SIGMA, size=canvas.shape)
    return np.clip(np.rint(exposed), 0, 255).astype(np.uint8)
