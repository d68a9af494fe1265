"""Keeping embeddings of regions on disk: a teacher's, for regions that come again every epoch."""

import hashlib
import os
from pathlib import Path

import torch
from torch import Tensor

from densedet.errors import CheckpointError
from densedet.weights import read_safetensors, write_safetensors


class EmbeddingCache:
    """Embeddings of rectangles of images, one safetensors file an image.

    A file is found by a hash of the image's key, in one of 256 sub-folders, and holds the identity
    of what made the embeddings. Processes may share a folder: a file is replaced as a whole, so
    what is lost, if two write the same image at once, is only made again.

    A folder belongs to one data set: images are told apart by their keys alone, and another data
    set may give the same id and file name to other pixels.

    Args:
        folder: where the files are; made when the first one is written.
        identity: of everything but the image that the embeddings depend on: weights, crop size,
            padding, precision, ...
    """

    def __init__(self, folder: str | os.PathLike[str], identity: str) -> None:
        self.folder = Path(folder)
        self.identity = identity

    def path(self, image_key: str) -> Path:
        """The file of an image."""
        name = hashlib.sha256(image_key.encode()).hexdigest()
        return self.folder / name[:2] / f"{name[2:22]}.safetensors"

    def get(self, image_key: str, rectangles: Tensor) -> tuple[Tensor, Tensor]:
        """Look up embeddings.

        Args:
            image_key: what tells the images of a data set apart, e.g. the image id.
            rectangles: integers ``[K, 4]``, (left, upper, right, lower).

        Returns:
            ``[K, D]``, zeros where there is none, in the dtype they were given in (``[K, 0]`` if
            the image has no file), on the CPU; bool ``[K]``, which of them were found.

        Raises:
            CheckpointError: the file is damaged, or of another identity or image.
        """
        known, embeddings = self._read(image_key)
        rows = [known.get(tuple(rectangle), -1) for rectangle in rectangles.tolist()]
        index = torch.tensor(rows, dtype=torch.int64)
        found = index >= 0
        result = embeddings.new_zeros(len(index), embeddings.shape[1])
        result[found] = embeddings[index[found]]
        return result, found

    def put(self, image_key: str, rectangles: Tensor, embeddings: Tensor) -> None:
        """Add embeddings to those of an image; new ones replace old ones of the same rectangle.

        Args:
            image_key: see :meth:`get`.
            rectangles: integers ``[K, 4]``.
            embeddings: ``[K, D]``.

        Raises:
            ValueError: the shapes do not fit each other, or D that of the file.
            CheckpointError: the image has a file that is damaged or of another identity.
            OutputError: the file cannot be written.
        """
        if rectangles.shape != (len(rectangles), 4) or embeddings.shape[:-1] != (len(rectangles),):
            raise ValueError(
                f"rectangles {tuple(rectangles.shape)} and embeddings {tuple(embeddings.shape)} "
                "must be [K, 4] and [K, D]"
            )
        embeddings = embeddings.detach().cpu()
        known, before = self._read(image_key)
        rows = dict(zip(known, before, strict=True))
        if rows and before.shape[1] != embeddings.shape[1]:
            raise ValueError(
                f"embeddings of {embeddings.shape[1]} values cannot be added to "
                f"{self.path(image_key)}, which has {before.shape[1]}"
            )
        rows.update(zip(map(tuple, rectangles.tolist()), embeddings, strict=True))
        if not rows:
            return
        content = {
            "rectangles": torch.tensor(list(rows), dtype=torch.int64),
            "embeddings": torch.stack([row.to(embeddings.dtype) for row in rows.values()]),
        }
        write_safetensors(self.path(image_key), content, self._metadata(image_key))

    def _metadata(self, image_key: str) -> dict[str, str]:
        return {"identity": self.identity, "image": image_key}

    def _read(self, image_key: str) -> tuple[dict[tuple[int, ...], int], Tensor]:
        """Rectangle -> row, and the rows ``[K, D]``; nothing if there is no file."""
        path = self.path(image_key)
        if not path.is_file():
            return {}, torch.zeros(0, 0)
        remedy = "delete the folder, or choose another, to have the embeddings made again"
        try:
            content, metadata = read_safetensors(path)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: damaged embedding cache ({error}); {remedy}") from error
        different = [
            name for name, value in self._metadata(image_key).items() if metadata.get(name) != value
        ]
        if different:
            raise CheckpointError(
                f"{path}: embeddings of image {image_key} made by another model or with "
                f"other settings (different {', '.join(different)}); {remedy}"
            )
        if content.keys() != {"rectangles", "embeddings"}:
            raise CheckpointError(f"{path}: damaged embedding cache (other tensors); {remedy}")
        rectangles, embeddings = content["rectangles"], content["embeddings"]
        if rectangles.shape != (len(embeddings), 4) or embeddings.ndim != 2:
            raise CheckpointError(f"{path}: damaged embedding cache (wrong shapes); {remedy}")
        return {tuple(r): row for row, r in enumerate(rectangles.tolist())}, embeddings
