"""The part of a model that sees the image alone, whatever the words are."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch import Tensor, nn

from densedet.clip import ClipVisual
from densedet.errors import ConfigError
from densedet.modeling.backbone import DENSE_FEATURE
from densedet.modeling.backbone.aligned import DENSE_EMBEDDING
from densedet.modeling.backbone.clip_backbone import content_key
from densedet.modeling.backbone.guided import find_guided
from densedet.modeling.detection_limits import replaced
from densedet.modeling.meta_arch import ZeroShotSegmentor
from densedet.predictor.images import PreparedImage


@dataclass(frozen=True)
class _Call:
    """A method of a module that takes images, its further arguments, and what to take of it."""

    owner: nn.Module
    method: str = "forward"
    arguments: tuple[Any, ...] = ()
    name: str | None = None

    def __call__(self, images: Tensor) -> Any:
        result = getattr(self.owner, self.method)(images, *self.arguments)
        return result if self.name is None else result[self.name]


class _Results:
    """The latest results of the encoder, up to a number of bytes, and the very latest always."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable) -> Any:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: Hashable, result: Any) -> None:
        self._kept[key] = result
        total = sum(map(_bytes, self._kept.values()))
        while total > self._limit and len(self._kept) > 1:
            total -= _bytes(self._kept.popitem(last=False)[1])


class ImageEncoder:
    """Runs the image encoder of a model once for an image, in a precision of its own.

    The encoder is the largest part that no word has an influence on: the trunk below a guidance,
    the tower of a `ZeroShotSegmentor`, or else the whole backbone with its pyramid.

    Args:
        model: in evaluation.
        dtype: that autocast computes in; fp32 stands for no autocast. Results are fp32 always.
        bytes_kept: of results, on the device of the model; images and windows that were not asked
            for the longest are forgotten first.
    """

    def __init__(self, model: Any, dtype: torch.dtype, bytes_kept: int = 1 << 30) -> None:
        self.model = model
        self.dtype = dtype
        self._encode, self._dense = _calls(model)
        self._results = _Results(bytes_kept)

    @contextmanager
    def remembering(self, keep: bool) -> Iterator[None]:
        """Meanwhile the encoder answers from what it was asked before.

        Args:
            keep: False looks nothing up and keeps nothing.
        """
        with self._remembering(self._encode, keep):
            yield

    def dense_map(self, image: PreparedImage) -> tuple[Tensor, float]:
        """The dense map of an image as the model sees it.

        Returns:
            [D, h, w] fp32 of unit columns, the padding at the right and the bottom included, and
            the pixels of ``image.tensor`` per cell.

        Raises:
            ConfigError: the model has no map in the space of words.
        """
        if self._dense is None:
            raise ConfigError(
                f"{type(self.model).__name__} gives no dense map in the space of words here: take "
                "a model on a CLIP image tower with its embedding"
            )
        images = self._padded(image)
        with self._remembering(self._dense, True):
            dense = self._dense(images)
        return F.normalize(dense[0], dim=0), images.shape[-1] / dense.shape[-1]

    @contextmanager
    def _remembering(self, call: _Call, keep: bool) -> Iterator[None]:
        encode = self._in_precision(getattr(call.owner, call.method))

        def remembered(images: Tensor, *others: Any) -> Any:
            if not keep:
                return encode(images, *others)
            key = (call.method, others, content_key(images))
            result = self._results.get(key)
            if result is None:
                result = encode(images, *others)
                self._results.put(key, result)
            return result

        with replaced(call.owner, call.method, remembered):
            yield

    def _in_precision(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        if self.dtype == torch.float32:
            return encode

        def encode_fast(images: Tensor, *others: Any) -> Any:
            with torch.autocast(images.device.type, self.dtype):
                result = encode(images, *others)
            if isinstance(result, dict):
                return {name: value.float() for name, value in result.items()}
            return result.float()

        return encode_fast

    def _padded(self, image: PreparedImage) -> Tensor:
        """[1, 3, H, W], normalised and padded as the model does it for a whole image."""
        if hasattr(self.model, "preprocess_image"):
            images: ImageList = self.model.preprocess_image([image.record])
            return images.tensor
        pixels = image.tensor.to(self.model.device)
        normalised = (pixels - self.model.pixel_mean) / self.model.pixel_std
        zero_shot = isinstance(self.model, ZeroShotSegmentor)
        divisor = self.model.visual.stride if zero_shot else self.model.backbone.size_divisibility
        return ImageList.from_tensors([normalised], divisor).tensor


def _bytes(result: Any) -> int:
    tensors = result.values() if isinstance(result, dict) else (result,)
    return sum(tensor.nbytes for tensor in tensors)


def _calls(model: Any) -> tuple[_Call, _Call | None]:
    """What encodes images for the heads, and what gives the dense map; None without one."""
    if isinstance(model, ZeroShotSegmentor):
        call = _Call(model.visual, "dense_map", (model.path,))
        return call, call
    guided = find_guided(model)
    if guided is not None:
        aligned = getattr(guided.trunk, "embed_dim", None) is not None
        dense = _Call(guided.trunk, name=DENSE_EMBEDDING) if aligned else None
        return _Call(guided.trunk), dense
    if DENSE_FEATURE in model.backbone.output_shape():
        return _Call(model.backbone), _Call(model.backbone, name=DENSE_FEATURE)
    visual = next((m for m in model.modules() if isinstance(m, ClipVisual) and m.embeds), None)
    return _Call(model.backbone), None if visual is None else _Call(visual, "dense_map")
