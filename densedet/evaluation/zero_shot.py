"""Zero-shot classification of Shapes World crops: what a CLIP knows before any region training."""

import torch
import torch.nn.functional as F
from torch import Tensor

from densedet.clip import ClipVisual
from densedet.data.shapes_world_scenes import make_scene


def scene_crops(seed: int, split: str, count: int, size: int) -> tuple[Tensor, list[str]]:
    """Tight crops of every object of the first ``count`` scenes.

    Returns:
        (N, 3, size, size) float in 0..1, each crop resized (bilinear, antialiased, aspect ratio
        not kept), and the N labels.
    """
    crops, labels = [], []
    for index in range(count):
        scene = make_scene(seed, split, index)
        image = torch.from_numpy(scene.image).permute(2, 0, 1)[None].float() / 255
        for thing in scene.things:
            rows, columns = thing.mask.any(1).nonzero()[0], thing.mask.any(0).nonzero()[0]
            box = image[..., rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            crops.append(F.interpolate(box, (size, size), mode="bilinear", antialias=True))
            labels.append(thing.label)
    return torch.cat(crops), labels


@torch.no_grad()
def zero_shot_accuracy(
    visual: ClipVisual, crops: Tensor, labels: list[str], names: list[str], embeddings: Tensor
) -> float:
    """Top-1 accuracy in percent of crops against the class embeddings (C, D) of ``names``."""
    device = next(visual.parameters()).device
    mean = torch.tensor(visual.pixel_mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor(visual.pixel_std, device=device).view(1, 3, 1, 1)
    parts = [visual.embed_images((part.to(device) - mean) / std) for part in crops.split(256)]
    unit = F.normalize(torch.cat(parts), dim=-1)
    predicted = (unit @ embeddings.to(unit).T).argmax(1).cpu()
    truth = torch.tensor([names.index(label) for label in labels])
    return 100.0 * (predicted == truth).float().mean().item()
