"""Contrastive pretraining: targets, loss, augmentation, schedule, determinism."""

import math

import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer

from densedet.clip.tiny import build_tiny_clip
from densedet.engine.contrastive import (
    ContrastivePretrainer,
    ContrastiveRecipe,
    PairDataset,
    content_words,
    contrastive_loss,
    contrastive_targets,
    learning_rate_factor,
    random_resized_crop,
)


def test_captions_of_the_same_things_are_positives():
    captions = ["a photo of a red star.", "the red star", "a blue ring and a red star", "sand"]
    assert content_words(captions[0]) == content_words(captions[1]) == "red star"
    expected = [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert contrastive_targets(captions).tolist() == expected


def test_loss_equals_a_double_loop():
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(4, 8, generator=generator) for _ in range(2))
    targets = contrastive_targets(["red star", "a red star", "blue ring", "sand"])
    expected = 0.0
    for i in range(4):
        rows = torch.stack([F.cosine_similarity(images[i], texts[j], 0) for j in range(4)])
        columns = torch.stack([F.cosine_similarity(images[j], texts[i], 0) for j in range(4)])
        for j in range(4):
            log_p = (9 * rows)[j] - torch.logsumexp(9 * rows, 0)
            log_q = (9 * columns)[j] - torch.logsumexp(9 * columns, 0)
            expected -= targets[i, j].item() * (log_p + log_q).item() / 8
    loss = contrastive_loss(images, texts, torch.tensor(9.0), targets)
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_crops_keep_at_least_60_percent_and_flip_half():
    """A horizontal ramp tells where a crop came from: its slope is the side, its sign the flip."""
    ramp = torch.linspace(0, 1, 56).expand(400, 3, 56, 56).contiguous()
    crops = random_resized_crop(ramp, 48, torch.Generator().manual_seed(0))
    assert crops.shape == (400, 3, 48, 48)
    slope = (crops[:, 0, 24, 35] - crops[:, 0, 24, 12]) / 23 * 48 * 55 / 56
    assert slope.abs().min() > math.sqrt(0.6) - 0.02 and slope.abs().max() < 1.02
    assert 0.4 < (slope < 0).float().mean() < 0.6


def test_learning_rate_warms_up_and_falls():
    recipe = ContrastiveRecipe(iterations=100, warmup=10, final_lr=0.02)
    factors = [learning_rate_factor(step, recipe) for step in (0, 4, 9, 10, 55, 100)]
    assert factors == pytest.approx([0.1, 0.5, 1.0, 1.0, 0.51, 0.02])


def test_pairs_are_numbered():
    pairs = PairDataset(seed=1, count=3)
    image, caption = pairs[2]
    assert len(pairs) == 3 and image.shape == (3, 56, 56) and image.dtype == torch.uint8
    assert caption == pairs[2][1]


def test_training_is_deterministic_and_learns():
    def losses() -> list[float]:
        torch.manual_seed(0)
        recipe = ContrastiveRecipe(iterations=12, batch_size=16, warmup=2)
        model = build_tiny_clip().train()
        trainer = ContrastivePretrainer(model, SimpleTokenizer(context_length=24), recipe)
        found = [trainer.step(images, list(captions)) for images, captions in trainer.batches()]
        assert 49406 in trainer.used_tokens and len(trainer.used_tokens) > 20
        return found

    first = losses()
    assert first == losses()
    assert sum(first[-3:]) < sum(first[:3])
