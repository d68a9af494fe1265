"""The scores of K classes at every pixel, reduced block by block.

A segmentation model compares a small map with K class embeddings; the result for H x W pixels is an
interpolation of it. What is asked of the result is a class and a probability for each pixel, so the
interpolation is made for a block of pixels at a time, and nothing of the size K x H x W exists.
Bilinear interpolation is separable and linear: whatever was cut out, averaged over windows and
resized on the way is one small matrix for the rows and one for the columns of each map.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from densedet.errors import ConfigError

_BLOCK = {"cpu": 2**18, "other": 2**25}  # scores of a block: what fits a cache, what fills a GPU
_COLUMNS = 128
FULL_LIMIT = 4.0
"""GiB of [K, H, W] fp32 that `PixelScores.full` makes unless it is told otherwise."""


class PixelScores(ABC):
    """Scores of K classes at H x W pixels that are computed when they are asked for.

    Nothing here is differentiable.

    Args:
        classes: K' indices of 0 .. ``count`` - 1, ascending: the classes that have scores; the
            others have -inf (or probability 0).
        count: K.
        size: height and width, pixels.
        probabilities: the scores are probabilities, and not logits.
    """

    def __init__(
        self, classes: Tensor, count: int, size: tuple[int, int], probabilities: bool = False
    ) -> None:
        self.classes = classes
        self.count = count
        self.size = size
        self.probabilities = probabilities

    @property
    def shape(self) -> tuple[int, int, int]:
        """(K, H, W)."""
        return (self.count, *self.size)

    @property
    def device(self) -> torch.device:
        """Where the scores are computed."""
        return self.classes.device

    @abstractmethod
    def block(self, rows: slice, columns: slice) -> Tensor:
        """The scores of a rectangle of n x m pixels: [n, m, K'] fp32.

        Args:
            rows, columns: with a start and a stop inside the image.
        """

    def reduce(self, function: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Apply a function of the scores of a pixel to all pixels.

        Args:
            function: from scores [n, m, K'] to tensors [n, m, ...]; K' are the `classes`.

        Returns:
            Tensors [H, W, ...].
        """
        results: tuple[Tensor, ...] = ()
        with torch.no_grad():
            for rows, columns in self._rectangles():
                found = function(self.block(rows, columns))
                if not results:
                    results = tuple(part.new_empty(*self.size, *part.shape[2:]) for part in found)
                for result, part in zip(results, found, strict=True):
                    result[rows, columns] = part
        return results

    def highest(self) -> Tensor:
        """The highest probability of each class in the image: [K] fp32."""
        found = torch.zeros(self.count, device=self.device)
        with torch.no_grad():
            for rows, columns in self._rectangles():
                chances = self._chances(self.block(rows, columns)).flatten(0, 1).amax(dim=0)
                found[self.classes] = torch.maximum(found[self.classes], chances)
        return found

    def resized(self, size: tuple[int, int]) -> "PixelScores":
        """These scores at other pixels, interpolated bilinearly.

        Args:
            size: height and width, pixels.
        """
        return self if size == self.size else _Resized(self, size)

    def _rectangles(self) -> list[tuple[slice, slice]]:
        height, width = self.size
        pixels = max(1, _BLOCK.get(self.device.type, _BLOCK["other"]) // max(1, len(self.classes)))
        wide = min(width, pixels, _COLUMNS if self.device.type == "cpu" else width)
        high = max(1, pixels // wide)
        return [
            (slice(top, min(top + high, height)), slice(left, min(left + wide, width)))
            for top in range(0, height, high)
            for left in range(0, width, wide)
        ]

    def best(self) -> tuple[Tensor, Tensor]:
        """The class with the highest score at each pixel, and its probability among all.

        Of equal scores the class with the lowest index counts. A NaN counts as the highest.

        Returns:
            [H, W] int64 and [H, W] fp32.
        """
        indices, chances = self.reduce(self._best_probability)
        return self.classes[indices], chances

    def max(self) -> tuple[Tensor, Tensor]:
        """The class with the highest score at each pixel, as of `best`, and that score.

        Returns:
            [H, W] int64 and [H, W] fp32.
        """
        values, indices = self.reduce(lambda block: tuple(block.max(dim=-1)))
        return self.classes[indices], values

    def argmax(self, dim: int = 0) -> Tensor:
        """The first result of `max`, called as Detectron2 calls a tensor [K, H, W].

        Raises:
            ValueError: ``dim`` is not 0, the axis of the classes.
        """
        if dim != 0:
            raise ValueError(f"scores are reduced over dim=0, their classes, and not dim={dim}")
        return self.max()[0]

    def top(self, count: int) -> tuple[Tensor, Tensor]:
        """The ``count`` most probable classes of each pixel, best first.

        Returns:
            [H, W, n] int64 and their probabilities [H, W, n] fp32; n is at most K'.
        """
        n = min(count, len(self.classes))
        chances, indices = self.reduce(lambda block: tuple(self._chances(block).topk(n, dim=-1)))
        return self.classes[indices], chances

    def select(self, classes: Sequence[int]) -> Tensor:
        """The scores of some classes: [n, H, W] fp32, in their order."""
        position = torch.full((self.count,), -1, device=self.device)
        position[self.classes] = torch.arange(len(self.classes), device=self.device)
        chosen = position[torch.as_tensor(list(classes), device=self.device, dtype=torch.int64)]
        absent = 0.0 if self.probabilities else float("-inf")
        (found,) = self.reduce(
            lambda block: (block[..., chosen.clamp(min=0)].masked_fill(chosen < 0, absent),)
        )
        return found.movedim(-1, 0)

    def full(self, limit: float = FULL_LIMIT) -> Tensor:
        """All scores: [K, H, W] fp32.

        Args:
            limit: GiB.

        Raises:
            ConfigError: they would take more than that.
        """
        gigabytes = 4 * self.count * self.size[0] * self.size[1] / 2**30
        if gigabytes > limit:
            raise ConfigError(
                f"the scores of {self.count} classes at {self.size[0]}x{self.size[1]} (HxW) pixels "
                f"take {gigabytes:.1f} GiB, more than the limit of {limit:g}: ask for best(), "
                "top(n) or select(classes), or give a higher limit"
            )
        return self.select(range(self.count))

    def _chances(self, block: Tensor) -> Tensor:
        return block if self.probabilities else block.softmax(dim=-1)

    def _best_probability(self, block: Tensor) -> tuple[Tensor, Tensor]:
        best = block.max(dim=-1)
        if self.probabilities:
            return best.indices, best.values
        # exp(best) / sum(exp), with the best subtracted in both
        total = (block - best.values[..., None]).exp_().sum(dim=-1)
        return best.indices, total.reciprocal()


@dataclass(frozen=True)
class Part:
    """A small map of logits, and how pixels are made of it.

    Attributes:
        logits: [h, w, K'] fp32.
        rows: [H, h], the weights of the map's rows in each row of pixels.
        columns: [W, w], likewise.
    """

    logits: Tensor
    rows: Tensor
    columns: Tensor


class Interpolated(PixelScores):
    """Logits that are a sum of interpolated maps, e.g. one a window.

    Args:
        parts: the maps; together they reach every pixel.
        classes, count: as of `PixelScores`.
    """

    def __init__(self, parts: Sequence[Part], classes: Tensor, count: int) -> None:
        super().__init__(classes, count, (len(parts[0].rows), len(parts[0].columns)))
        self.parts = tuple(parts)
        spans: dict[int, Tensor] = {}  # windows beside each other share a matrix
        for matrix in (m for part in parts for m in (part.rows, part.columns)):
            if id(matrix) not in spans:
                spans[id(matrix)] = _spans(matrix)
        self._spans = [(spans[id(part.rows)], spans[id(part.columns)]) for part in parts]

    def block(self, rows: slice, columns: slice) -> Tensor:
        """As `PixelScores.block`."""
        total: Tensor | None = None
        for part, (row_spans, column_spans) in zip(self.parts, self._spans, strict=True):
            below, right = _span(row_spans, rows), _span(column_spans, columns)
            if below is not None and right is not None:
                cells = part.logits[below, right]
                found = _between(cells, part.rows[rows, below], part.columns[columns, right])
                total = found if total is None else total.add_(found)
        assert total is not None, "the maps reach every pixel"
        return total

    def resized(self, size: tuple[int, int]) -> "PixelScores":
        """As `PixelScores.resized`: two interpolations are one."""
        if size == self.size:
            return self
        rows = bilinear_matrix(self.size[0], size[0], self.device)
        columns = bilinear_matrix(self.size[1], size[1], self.device)
        products: dict[int, Tensor] = {}

        def product(matrix: Tensor, own: Tensor) -> Tensor:
            if id(own) not in products:
                products[id(own)] = matrix @ own
            return products[id(own)]

        parts = [
            Part(part.logits, product(rows, part.rows), product(columns, part.columns))
            for part in self.parts
        ]
        return Interpolated(parts, self.classes, self.count)

    def only(self, kept: Tensor) -> "Interpolated":
        """Without some classes, whose scores become -inf.

        Args:
            kept: [K] bool.
        """
        chosen = kept[self.classes]
        parts = [Part(p.logits[..., chosen].contiguous(), p.rows, p.columns) for p in self.parts]
        return Interpolated(parts, self.classes[chosen], self.count)


class StoredScores(PixelScores):
    """Scores that are there as a tensor.

    Args:
        scores: [K, H, W].
        probabilities: as of `PixelScores`.
    """

    def __init__(self, scores: Tensor, probabilities: bool = False) -> None:
        count, height, width = scores.shape
        classes = torch.arange(count, device=scores.device)
        super().__init__(classes, count, (height, width), probabilities)
        self._scores = scores

    def block(self, rows: slice, columns: slice) -> Tensor:
        """As `PixelScores.block`."""
        return self._scores[:, rows, columns].movedim(0, -1).float().contiguous()


class MeanProbabilities(PixelScores):
    """The mean of the probabilities of several views of one image, of the same classes and size.

    Args:
        views: the scores; of one that was ``mirrored``, the columns count from the right.
        mirrored: a flag for each view.
    """

    def __init__(self, views: Sequence[PixelScores], mirrored: Sequence[bool]) -> None:
        first = views[0]
        super().__init__(first.classes, first.count, first.size, probabilities=True)
        self._views = tuple(zip(views, mirrored, strict=True))

    def block(self, rows: slice, columns: slice) -> Tensor:
        """As `PixelScores.block`."""
        width = self.size[1]
        total: Tensor | None = None
        for view, mirrored in self._views:
            part = slice(width - columns.stop, width - columns.start) if mirrored else columns
            chances = view._chances(view.block(rows, part))
            chances = chances.flip(1) if mirrored else chances
            total = chances if total is None else total + chances
        assert total is not None
        return total / len(self._views)


class _Resized(PixelScores):
    """Scores between those of another size, interpolated bilinearly."""

    def __init__(self, source: PixelScores, size: tuple[int, int]) -> None:
        super().__init__(source.classes, source.count, size, source.probabilities)
        self._source = source
        self._rows = bilinear_matrix(source.size[0], size[0], source.device)
        self._columns = bilinear_matrix(source.size[1], size[1], source.device)
        self._spans = _spans(self._rows), _spans(self._columns)

    def block(self, rows: slice, columns: slice) -> Tensor:
        """As `PixelScores.block`."""
        below, right = _span(self._spans[0], rows), _span(self._spans[1], columns)
        assert below is not None and right is not None, "a pixel lies between others"
        cells = self._source.block(below, right)
        return _between(cells, self._rows[rows, below], self._columns[columns, right])


def as_scores(scores: "PixelScores | Tensor") -> PixelScores:
    """Scores [K, H, W] as `PixelScores`; a tensor is taken for logits."""
    return scores if isinstance(scores, PixelScores) else StoredScores(scores)


def enlarged(logits: Tensor, stride: float, size: tuple[int, int]) -> Interpolated:
    """Logits ``[K, h, w]``, each of ``stride`` x ``stride`` pixels, at the first H x W pixels."""
    rows, columns = (
        bilinear_matrix(cells, round(stride * cells), logits.device)[:pixels]
        for cells, pixels in zip(logits.shape[1:], size, strict=True)
    )
    cells = logits.detach().float().movedim(0, -1).contiguous()
    classes = torch.arange(len(logits), device=logits.device)
    return Interpolated([Part(cells, rows, columns)], classes, len(logits))


def bilinear_matrix(source: int, target: int, device: torch.device) -> Tensor:
    """[target, source]: the weights with which torch interpolates ``source`` pixels linearly."""
    eye = torch.eye(source, device=device)
    return F.interpolate(eye[None], target, mode="linear", align_corners=False)[0].T.contiguous()


def _between(cells: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Cells [h, w, K] by weights [n, h] and [m, w]: [n, m, K]."""
    lines = (rows @ cells.flatten(1)).unflatten(1, cells.shape[1:])
    return columns @ lines


def _spans(matrix: Tensor) -> Tensor:
    """[n, 2] on the CPU: the first entry of each row that is not 0, and the one after the last."""
    used = matrix.cpu() != 0
    first = used.int().argmax(dim=1)
    last = used.shape[1] - used.flip(1).int().argmax(dim=1)
    return torch.stack([first, torch.where(used.any(dim=1), last, 0)], dim=1)


def _span(spans: Tensor, pixels: slice) -> slice | None:
    """What these pixels are made of; None for nothing."""
    chosen = spans[pixels]
    chosen = chosen[chosen[:, 1] > 0]
    return slice(int(chosen[:, 0].min()), int(chosen[:, 1].max())) if len(chosen) else None
