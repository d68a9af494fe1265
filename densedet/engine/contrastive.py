"""Contrastive image-text pretraining of a small CLIP on the image-caption pairs of Shapes World.

The loss is CLIP's (Radford et al., arXiv 2103.00020, section 2.3) with soft targets: captions of
the same content words are positives of each other.
"""

import math
import re

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from densedet.data.shapes_world_scenes import make_pair
from densedet.engine.contrastive_recipe import ContrastiveRecipe

_FUNCTION_WORDS = frozenset(
    ("a", "the", "an", "and", "on", "of", "is", "there", "with", "photo", "picture", "image")
)


class PairDataset(Dataset[tuple[Tensor, str]]):
    """Image-caption pairs drawn on the fly: (3, 56, 56) uint8 and one sentence."""

    def __init__(self, seed: int, count: int) -> None:
        self.seed = seed
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        image, caption = make_pair(self.seed, index)
        return torch.from_numpy(image).permute(2, 0, 1), caption


def content_words(caption: str) -> str:
    """The sorted words of a caption without articles, conjunctions and the template's words."""
    words = re.findall(r"[a-z]+", caption.lower())
    return " ".join(sorted(w for w in words if w not in _FUNCTION_WORDS))


def contrastive_targets(captions: list[str]) -> Tensor:
    """(B, B) target distribution: uniform over the captions with the same content words."""
    keys = [content_words(caption) for caption in captions]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    group = torch.tensor([numbers[key] for key in keys])
    same = (group[:, None] == group[None, :]).float()
    return same / same.sum(1, keepdim=True)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, targets: Tensor) -> Tensor:
    """Symmetric cross-entropy of scaled cosines of (B, D) embeddings with soft targets (B, B)."""
    logits = scale * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def random_resized_crop(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Crop 60 to 100 % of the area of each (B, 3, H, W) image, flip half of them, resize."""
    count = images.shape[0]
    draw = torch.rand(4, count, generator=generator)
    side = (0.6 + 0.4 * draw[0]).sqrt()
    shift = (1 - side) * (2 * draw[1:3] - 1)
    flip = torch.where(draw[3] < 0.5, -1.0, 1.0)
    zero = torch.zeros(count)
    rows = [torch.stack([side * flip, zero, shift[0]], 1), torch.stack([zero, side, shift[1]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), [count, 3, size, size], align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _optimizers(model: CLIP, recipe: ContrastiveRecipe) -> list[torch.optim.Optimizer]:
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        block_matrix = "resblocks" in name and parameter.ndim == 2
        (matrices if block_matrix else rest).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(
            rest, lr=recipe.adamw_lr, betas=(0.9, 0.98), weight_decay=recipe.weight_decay
        ),
    ]


def learning_rate_factor(step: int, recipe: ContrastiveRecipe) -> float:
    """Multiplier of both learning rates at a step: linear warm-up, then half a cosine."""
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(recipe.iterations - recipe.warmup, 1)
    return recipe.final_lr + (1 - recipe.final_lr) * (1 + math.cos(math.pi * done)) / 2


class ContrastivePretrainer:
    """Trains an open_clip model; ``step`` runs one iteration, ``used_tokens`` collects word ids.

    Args:
        model: open_clip ``CLIP`` in training mode, on the CPU; changed in place.
        tokenizer: captions -> (B, L) int64.
        recipe: the settings.
    """

    def __init__(self, model: CLIP, tokenizer: SimpleTokenizer, recipe: ContrastiveRecipe) -> None:
        self.model, self.tokenizer, self.recipe = model, tokenizer, recipe
        self.optimizers = _optimizers(model, recipe)
        self.schedulers = [
            torch.optim.lr_scheduler.LambdaLR(o, lambda step: learning_rate_factor(step, recipe))
            for o in self.optimizers
        ]
        self.generator = torch.Generator().manual_seed(recipe.seed)
        self.used_tokens: set[int] = set()
        self.mean = torch.tensor(model.visual.image_mean).view(1, 3, 1, 1)
        self.std = torch.tensor(model.visual.image_std).view(1, 3, 1, 1)
        with torch.no_grad():
            model.logit_scale.fill_(math.log(recipe.logit_scale))

    def batches(self) -> DataLoader[tuple[Tensor, str]]:
        """New pairs for every iteration, in the order of their numbers."""
        pairs = PairDataset(self.recipe.seed, self.recipe.iterations * self.recipe.batch_size)
        return DataLoader(pairs, batch_size=self.recipe.batch_size, num_workers=1)

    def step(self, images: Tensor, captions: list[str]) -> float:
        """One optimisation step on (B, 3, 56, 56) uint8 images; returns the loss."""
        size = self.model.visual.image_size
        crops = random_resized_crop(images.float() / 255, size[0], self.generator)
        tokens = self.tokenizer(captions)
        self.used_tokens.update(tokens.unique().tolist())
        loss = contrastive_loss(
            self.model.encode_image((crops - self.mean) / self.std),
            self.model.encode_text(tokens),
            self.model.logit_scale.exp(),
            contrastive_targets(captions),
        )
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            scheduler.step()
        return loss.item()
