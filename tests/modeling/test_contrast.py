"""The align-guided contrast: loops instead of tensors, its samples, and batches without any."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from densedet.errors import ConfigError
from densedet.modeling.guidance import AlignGuidedContrast
from densedet.modeling.guidance.contrast import guided_samples

EMBED, CLASSES, SIDE, TAU = 6, 5, 4, 0.1
ALL = SIDE * SIDE


def batch(images: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Locations with a gradient, unit text vectors, cosines, labels of twice the size."""
    generator = torch.Generator().manual_seed(seed)
    locations = torch.randn(images, EMBED, SIDE, SIDE, generator=generator).requires_grad_()
    text = F.normalize(torch.randn(images, CLASSES, EMBED, generator=generator), dim=2)
    cells = torch.randint(0, CLASSES, (images, SIDE, SIDE), generator=generator)
    cells[0, 0] = 255
    cells[-1, 1:3] = 65535
    labels = cells.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    return locations, text, cosines(locations, text), labels


def cosines(locations: Tensor, text: Tensor) -> Tensor:
    return torch.einsum("beyx,bke->bkyx", F.normalize(locations, dim=1), text)


def brute_force_t2p(scores: Tensor, labels: Tensor, min_pixels: int) -> Tensor:
    costs = []
    for of_image, cells in zip(scores.flatten(2), labels[:, ::2, ::2].flatten(1), strict=True):
        for k in range(CLASSES):
            positives = [i for i in range(ALL) if cells[i] == k]
            negatives = [i for i in range(ALL) if cells[i] != k and cells[i] < CLASSES]
            if len(positives) < min_pixels:
                continue
            exps = (of_image[k] / TAU).exp()
            total = sum(exps[j] for j in negatives)
            costs.append(sum(-(exps[i] / (exps[i] + total)).log() for i in positives))
            costs[-1] = costs[-1] / len(positives)
    return sum(costs) / len(costs)


def brute_force_p2p(locations: Tensor, labels: Tensor, min_pixels: int) -> Tensor:
    anchors = []
    for image, cells in zip(locations.flatten(2), labels[:, ::2, ::2].flatten(1), strict=True):
        for k in range(CLASSES):
            found = [i for i in range(ALL) if cells[i] == k]
            if len(found) >= min_pixels:
                anchors += [(k, image[:, i] / image[:, i].norm()) for i in found]
    costs = []
    for i, (k, anchor) in enumerate(anchors):
        exps = [(anchor @ other / TAU).exp() for _, other in anchors]
        total = sum(e for e, (c, _) in zip(exps, anchors, strict=True) if c != k)
        positives = [j for j, (c, _) in enumerate(anchors) if c == k and j != i]
        if positives:
            terms = [-(exps[j] / (exps[j] + total)).log() for j in positives]
            costs.append(sum(terms) / len(terms))
    return sum(costs) / len(costs)


def brute_force_weighted(scores: Tensor, labels: Tensor, _: int) -> Tensor:
    costs = []
    for of_image, cells in zip(scores.flatten(2), labels[:, ::2, ::2].flatten(1), strict=True):
        for i in range(ALL):
            if cells[i] < CLASSES:
                probability = (of_image[:, i] / TAU).softmax(0)[cells[i]]
                costs.append(-(1 - probability.detach()) * probability.log())
    return sum(costs) / len(costs)


@pytest.mark.parametrize("min_pixels", [1, 4])
@pytest.mark.parametrize("mode", ["t2p", "p2p", "t2p+p2p", "weighted_p2t"])
def test_against_loops(mode: Any, min_pixels: int) -> None:
    """Values and gradients, where every location is taken."""
    model = AlignGuidedContrast(
        mode, weight=0.5, num_positives=ALL, num_negatives=ALL, min_pixels=min_pixels
    )
    locations, _, scores, labels = batch()
    found = model(locations, scores, labels)["loss_contrast"]
    expected = 0.0
    if "t2p" in mode:
        expected += brute_force_t2p(scores, labels, min_pixels)
    if "p2p" in mode:
        expected += brute_force_p2p(locations, labels, min_pixels)
    if mode == "weighted_p2t":
        expected += brute_force_weighted(scores, labels, min_pixels)
    torch.testing.assert_close(found, 0.5 * expected)
    gradients = [
        torch.autograd.grad(loss, locations, retain_graph=True)[0]
        for loss in (found, 0.5 * expected)
    ]
    assert gradients[0].any()
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_samples_are_the_hardest_and_others() -> None:
    torch.manual_seed(0)
    candidates = torch.rand(50, 40) < 0.5
    hardness = torch.randn(50, 40)
    seen = torch.zeros(50, 40)
    for _ in range(30):
        indices, chosen = guided_samples(candidates, hardness, 8)
        assert chosen.all() and candidates.gather(1, indices).all()
        assert all(len(set(row)) == 8 for row in indices.tolist())
        seen.scatter_add_(1, indices, torch.ones(50, 8))
    hardest = hardness.masked_fill(~candidates, -9).topk(4, dim=1).indices
    assert (seen.gather(1, hardest) == 30).all()
    rest = seen.scatter(1, hardest, 0)[candidates.scatter(1, hardest, False)]
    assert (rest > 0).float().mean() > 0.95 and rest.max() < 30  # random among the others


def test_samples_of_short_rows_are_all_there_are() -> None:
    candidates = torch.zeros(3, 5, dtype=torch.bool)
    candidates[0, 2] = True
    candidates[1, 1:4] = True
    for count in (4, 9):
        indices, chosen = guided_samples(candidates, torch.randn(3, 5), count)
        assert indices.shape == chosen.shape == (3, min(count, 5))
        taken = [sorted(i[c].tolist()) for i, c in zip(indices, chosen, strict=True)]
        assert taken == [[2], [1, 2, 3], []]
    for rows in (0, 2):
        indices, chosen = guided_samples(candidates[:rows], torch.randn(rows, 5), 1)
        assert indices.shape == (rows, 1)


def test_the_score_map_guides_the_samples() -> None:
    """Of two positives and two negatives one is the worst, whatever the seed."""
    values = torch.linspace(-1, 1, ALL)
    scores = values.reshape(1, 1, SIDE, SIDE).repeat(1, 2, 1, 1)
    labels = torch.arange(ALL).reshape(1, SIDE, SIDE) // 8
    model = AlignGuidedContrast("t2p", num_positives=2, num_negatives=2, weight=1.0)
    # category 0 has values 0 to 7 and meets 15; category 1 has 8 to 15 and meets 7
    gaps = torch.stack([values[15] - values[0], values[15] - values[7]])
    gaps = torch.cat([gaps, torch.stack([values[7] - values[8], values[7] - values[15]])])
    least = F.softplus(gaps / TAU).mean().item()
    losses = set()
    for seed in range(5):
        torch.manual_seed(seed)
        loss = model(torch.ones(1, 3, SIDE, SIDE), scores, labels)["loss_contrast"].item()
        assert loss >= least
        losses.add(loss)
    assert len(losses) > 1  # the other halves are random


def test_constant_scores_cost_the_logarithm_of_the_choices() -> None:
    """And a gap of 1 in the cosines costs about 0.012 against 256 negatives."""
    labels = torch.zeros(1, 17, 16, dtype=torch.int64)
    labels[:, 0, :4] = 1  # 4 locations against 268, of which 256 are taken
    model = AlignGuidedContrast("t2p", weight=1.0)
    locations, scores = torch.ones(1, 3, 17, 16), torch.full((1, 2, 17, 16), 0.3)
    expected = (math.log(1 + 256) + math.log(1 + 4)) / 2
    assert model(locations, scores, labels)["loss_contrast"].item() == pytest.approx(expected)
    scores = F.one_hot(labels, 2).permute(0, 3, 1, 2).float()
    costs = [math.log1p(count * math.exp(-10)) for count in (256, 4)]
    found = model(locations, scores, labels)["loss_contrast"].item()
    assert found == pytest.approx(sum(costs) / 2, rel=1e-4)
    assert costs[0] == pytest.approx(0.012, abs=5e-4)


def test_the_label_at_the_centre_of_a_location_counts() -> None:
    locations, _, scores, labels = batch()
    model = AlignGuidedContrast(num_positives=ALL, num_negatives=ALL)
    expected = model(locations, scores, labels)
    fine = labels.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    fine[:, ::4], fine[:, :, ::4] = 255, 255
    torch.testing.assert_close(model(locations, scores, fine), expected)


@pytest.mark.parametrize("mode", ["t2p", "p2p", "t2p+p2p", "weighted_p2t"])
def test_aligned_locations_cost_less(mode: Any) -> None:
    locations, text, _, labels = batch()
    model = AlignGuidedContrast(mode)
    cells = labels[:, ::2, ::2].clamp(max=CLASSES - 1)
    targets = torch.stack([text[i][cells[i]].permute(2, 0, 1) for i in range(3)])
    losses = []
    for share in (0.0, 0.5, 1.0):
        moved = (1 - share) * F.normalize(locations, dim=1) + share * targets
        torch.manual_seed(0)
        losses.append(model(moved, cosines(moved, text), labels)["loss_contrast"].item())
    assert losses[0] > losses[1] > losses[2] >= 0


@pytest.mark.parametrize("mode", ["t2p", "p2p", "t2p+p2p", "weighted_p2t"])
@pytest.mark.parametrize("label", [255, 65535, -1])
def test_without_a_valid_location_the_loss_is_zero_with_a_gradient(mode: Any, label: int) -> None:
    locations, _, scores, labels = batch()
    labels = torch.full_like(labels, label)
    loss = AlignGuidedContrast(mode)(locations, scores, labels)["loss_contrast"]
    assert loss.item() == 0
    loss.backward()
    assert locations.grad is not None and not locations.grad.any()


@pytest.mark.parametrize("mode", ["t2p", "p2p", "t2p+p2p"])
def test_rare_categories_do_not_count(mode: Any) -> None:
    locations, _, scores, labels = batch()
    loss = AlignGuidedContrast(mode, min_pixels=ALL + 1)(locations, scores, labels)
    assert loss["loss_contrast"].item() == 0
    loss["loss_contrast"].backward()
    assert not locations.grad.any()


@pytest.mark.parametrize("mode", ["t2p", "p2p", "t2p+p2p", "weighted_p2t"])
def test_one_category_alone(mode: Any) -> None:
    locations, _, scores, labels = batch()
    loss = AlignGuidedContrast(mode)(locations, scores, torch.full_like(labels, 2))["loss_contrast"]
    assert (loss.item() == 0) == (mode != "weighted_p2t") and loss.isfinite()
    loss.backward()
    assert locations.grad.isfinite().all()


def test_one_sample_a_category_has_no_pair() -> None:
    locations, _, scores, labels = batch(images=1)
    model = AlignGuidedContrast("p2p", num_positives=1)
    loss = model(locations, scores, labels)["loss_contrast"]
    loss.backward()
    assert loss.item() == 0 and not locations.grad.any()


def test_anchors_are_limited() -> None:
    """Of many positives a random choice; as many as allowed give the same as no limit."""
    locations, _, scores, labels = batch()
    settings = {"num_positives": ALL, "num_negatives": ALL}
    valid = int((labels[:, ::2, ::2] < CLASSES).sum())

    def loss(limit: int, seed: int = 0) -> float:
        torch.manual_seed(seed)
        model = AlignGuidedContrast("p2p", min_pixels=1, max_anchors=limit, **settings)
        return model(locations, scores, labels)["loss_contrast"].item()

    assert loss(valid) == pytest.approx(loss(10**6), rel=1e-6)
    assert loss(valid - 1) != pytest.approx(loss(valid), rel=1e-6)
    few = {round(loss(8, seed), 6) for seed in range(4)}
    assert len(few) > 1  # other seeds, other choices
    assert loss(1) == 0  # no pair


def test_an_image_without_labels_beside_one_with_them() -> None:
    locations, _, scores, labels = batch(images=2)
    labels[1] = 255
    model = AlignGuidedContrast(min_pixels=1, num_positives=ALL, num_negatives=ALL)
    found = model(locations, scores, labels)["loss_contrast"]
    expected = model(locations[:1], scores[:1], labels[:1])["loss_contrast"]
    torch.testing.assert_close(found, expected)
    found.backward()
    assert locations.grad[0].any() and not locations.grad[1].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", ["t2p+p2p", "weighted_p2t"])
def test_autocast_does_not_matter(mode: Any, dtype: torch.dtype) -> None:
    locations, _, scores, labels = batch()
    rounded = locations.detach().to(dtype).requires_grad_()
    model = AlignGuidedContrast(mode, num_positives=ALL, num_negatives=ALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(rounded, scores.detach().to(dtype), labels)["loss_contrast"]
    expected = model(rounded.float(), scores.detach().to(dtype).float(), labels)["loss_contrast"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)
    found.backward()
    assert rounded.grad.isfinite().all()


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"mode": "pixels"}, "'pixels': choose from t2p, t2p\\+p2p, p2p, weighted_p2t"),
        ({"temperature": 0.0}, "temperature=0.0: it must be positive"),
        ({"num_positives": 0}, "num_positives=0"),
        ({"num_negatives": -1}, "num_negatives=-1"),
        ({"min_pixels": 0}, "min_pixels=0"),
        ({"max_anchors": 0}, "max_anchors=0"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        AlignGuidedContrast(**settings)
