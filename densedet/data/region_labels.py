"""Pseudo-labels of boxes: the words of a vocabulary that CLIP finds closest to their crops.

What a training of :class:`densedet.modeling.meta_arch.RegionCLIP` reads: RegionCLIP (arXiv
2112.09106) labels region proposals with nouns of captions in this way. The result is a COCO-format
file with the vocabulary as its categories.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor

from densedet.clip import ClassEmbeddings, ClipVisual
from densedet.data.images import read_image
from densedet.data.region_images import register_region_images
from densedet.errors import DatasetError, VocabularyError
from densedet.files import check_regular
from densedet.modeling.region_encoder import embed_crops
from densedet.regions.crops import Padding, crop_and_resize, crop_rectangles
from densedet.vocabulary import Vocabulary
from densedet.vocabulary.category import prompt_key

Labeller = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def frequent_categories(
    vocabulary: Vocabulary, captions_file: str | os.PathLike[str], min_count: int
) -> Vocabulary:
    """The categories of which a synonym occurs in at least ``min_count`` captions.

    A name occurs if its words stand side by side in the caption, whatever their letter case;
    "cat" does not occur in "cats".

    Args:
        vocabulary: what to choose from; the order stays.
        captions_file: COCO's caption format, ``{"annotations": [{"caption": ...}, ...]}``.
        min_count: captions that must have the category.

    Raises:
        DatasetError: the file is missing or of another format.
        VocabularyError: no category occurs so often.
    """
    captions = _read_captions(Path(captions_file))
    owners = {
        " ".join(_words(name)): i
        for i, category in enumerate(vocabulary)
        for name in category.synonyms
    }
    longest = max(name.count(" ") + 1 for name in owners)
    counts = [0] * len(vocabulary)
    for caption in captions:
        found = {owners[phrase] for phrase in _phrases(caption, longest) if phrase in owners}
        for index in found:
            counts[index] += 1
    kept = [c for c, count in zip(vocabulary, counts, strict=True) if count >= min_count]
    if not kept:
        raise VocabularyError(
            f"none of the {len(vocabulary)} categories occurs in {min_count} captions of "
            f"{captions_file}; the most frequent has {max(counts)}: lower the count"
        )
    return Vocabulary(tuple(kept))


def _read_captions(path: Path) -> list[str]:
    try:
        check_regular(path)
        data = json.loads(path.read_bytes())
        return [annotation["caption"] for annotation in data["annotations"]]
    except OSError as error:
        raise DatasetError(f"caption file {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DatasetError(
            f"caption file {path} is not in COCO's caption format ({error!r}); give an object with "
            "the list 'annotations', each with a 'caption'"
        ) from error


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", prompt_key(text))


def _phrases(caption: str, longest: int) -> Iterator[str]:
    words = _words(caption)
    for length in range(1, longest + 1):
        for start in range(len(words) - length + 1):
            yield " ".join(words[start : start + length])


def read_boxes(
    json_file: str | os.PathLike[str],
    image_root: str | os.PathLike[str],
    proposal_file: str | os.PathLike[str] | None = None,
    max_boxes: int | None = None,
) -> list[dict[str, Any]]:
    """Read images and the boxes that are to be labelled.

    Args:
        json_file, image_root, proposal_file: see
            :func:`densedet.data.region_images.register_region_images`; without ``proposal_file``
            the boxes are those of the annotations that are no crowds.
        max_boxes: the proposals of an image that are taken, those of the highest scores (without
            scores the first in the file); None: all.

    Returns:
        For each image its "file_name", "image_id", "height", "width", and "boxes": float64
        ``[K, 4]``, (x0, y0, x1, y1) in pixels.

    Raises:
        DatasetError: a file is missing or of another format, or a record is wrong.
    """
    name = f"region_labels_{os.getpid()}"
    register_region_images(name, json_file, image_root, proposal_file=proposal_file)
    try:
        records: list[dict[str, Any]] = DatasetCatalog.get(name)
    finally:  # only the reader was wanted
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    for record in records:
        annotations = [a for a in record.pop("annotations") if not a["iscrowd"]]
        boxes = torch.tensor([a["bbox"] for a in annotations], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        if proposal_file is not None:
            boxes = torch.from_numpy(record["proposal_boxes"][:max_boxes]).double()
        record["boxes"] = boxes
    return records


class RegionLabeller:
    """Labels boxes of an image with the class whose embedding is closest to that of their crop.

    Args:
        visual: the image tower; runs where it is.
        embeddings: class embeddings of the same CLIP.
        enlarge: factor on the sides of a crop; 1.5 is that of CLIPSelf's teacher on proposals.
        padding: of :func:`densedet.regions.crops.crop_and_resize`.
    """

    def __init__(
        self,
        visual: ClipVisual,
        embeddings: ClassEmbeddings,
        enlarge: float = 1.5,
        padding: Padding = "centre",
    ) -> None:
        self.visual = visual
        self.device = next(visual.parameters()).device
        self.embeddings = embeddings.to(self.device)
        self.enlarge = enlarge
        self.padding: Padding = padding

    @torch.no_grad()
    def __call__(self, image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Label the boxes of one image.

        Args:
            image: uint8 ``[3, H, W]`` RGB.
            boxes: float ``[K, 4]``, (x0, y0, x1, y1) in pixels.

        Returns:
            Class indices ``[K]`` int64, and the cosines ``[K]`` fp32 of crop and class (of a class
            with several synonyms the closest), on the CPU.
        """
        if not len(boxes):
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0)
        image = image.to(self.device)
        rectangles = crop_rectangles(boxes, (image.shape[1], image.shape[2]), self.enlarge)
        size = self.visual.image_size[0]
        pixels = crop_and_resize([image], [rectangles], size, self.padding)
        vectors = F.normalize(embed_crops(self.visual, pixels).float(), dim=1)
        scores, rows = (vectors @ self.embeddings.vectors.T).max(dim=1)
        return self.embeddings.groups[rows].cpu(), scores.cpu()


def label_boxes(
    records: Iterable[Mapping[str, Any]], labeller: Labeller, min_score: float
) -> list[dict[str, Any]]:
    """COCO-format annotations of pseudo-labelled boxes.

    Args:
        records: of :func:`read_boxes`. The boxes are clipped to the image; those without area are
            left out, as are images without boxes.
        labeller: a :class:`RegionLabeller`.
        min_score: labels of a lower cosine are left out.

    Returns:
        "id" from 1, "image_id", "category_id" (index in the vocabulary, from 1), "bbox" (x, y,
        width, height), "area", "iscrowd" 0 and "score".

    Raises:
        ImageError: an image is missing or damaged.
    """
    annotations: list[dict[str, Any]] = []
    for record in records:
        if not len(record["boxes"]):
            continue
        image = torch.from_numpy(read_image(record["file_name"])).permute(2, 0, 1)
        boxes = _clipped(record["boxes"], (image.shape[1], image.shape[2]))
        labels, scores = labeller(image, boxes)
        for box, label, score in zip(boxes.tolist(), labels.tolist(), scores.tolist(), strict=True):
            if score >= min_score:
                annotation = {"id": len(annotations) + 1, "image_id": record["image_id"]}
                annotations.append({**annotation, **_content(box, label, score)})
    return annotations


def _content(box: list[float], label: int, score: float) -> dict[str, Any]:
    width, height = box[2] - box[0], box[3] - box[1]
    return {
        "category_id": label + 1,
        "bbox": [round(value, 2) for value in (box[0], box[1], width, height)],
        "area": round(width * height, 2),
        "iscrowd": 0,
        "score": round(score, 4),
    }


def _clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = size
    limits = torch.tensor([width, height, width, height], dtype=torch.float64)
    boxes = torch.minimum(boxes.to(torch.float64).clamp(min=0), limits)
    return boxes[((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)]


def label_file(
    records: Iterable[Mapping[str, Any]],
    image_root: str | os.PathLike[str],
    annotations: list[dict[str, Any]],
    vocabulary: Vocabulary,
    info: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of a COCO-format file: the labelled images and the whole vocabulary.

    Args:
        records: of :func:`read_boxes`; images without a label are left out.
        image_root: the file names are relative to it.
        annotations: of :func:`label_boxes`.
        vocabulary: becomes the categories, with ids from 1 in its order. Only the labels are
            stored: a vocabulary with synonyms is to be given again to the training.
        info: where it comes from.
    """
    labelled = {annotation["image_id"] for annotation in annotations}
    images = [
        {
            "id": record["image_id"],
            "file_name": os.path.relpath(record["file_name"], image_root),
            "height": record["height"],
            "width": record["width"],
        }
        for record in records
        if record["image_id"] in labelled
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(vocabulary.labels, start=1)]
    return {
        "info": dict(info),
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
