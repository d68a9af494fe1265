"""The semantic head that embeds pixels: against computations by hand."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from torch import Tensor

from densedet.clip import ClassEmbeddings
from densedet.errors import ConfigError, VocabularyError
from densedet.modeling.open_vocabulary_sem_seg_head import OpenVocabularySegmentationHead
from densedet.modeling.roi_heads import CosineClassifier
from densedet.modeling.sem_seg_head import SegmentationHead

EMBED = 5
SHAPES = {f"p{i}": ShapeSpec(channels=6, stride=2**i) for i in (2, 3, 4)}


def random_classes(groups: list[int], seed: int = 3) -> ClassEmbeddings:
    generator = torch.Generator().manual_seed(seed)
    vectors = F.normalize(torch.randn(len(groups), EMBED, generator=generator), dim=1)
    return ClassEmbeddings(vectors, torch.tensor(groups), torch.zeros(EMBED))


def make_head(seen: tuple[bool, ...] = (True,) * 3, **kwargs: Any) -> Any:
    """Three classes, of which the first has two synonyms."""
    torch.manual_seed(0)
    settings = {
        "input_shape": SHAPES,
        "classifier": CosineClassifier(EMBED, temperature=20.0),
        "conv_dims": 32,
        "common_stride": 4,
        "norm": "GN",
        "dropout": 0.0,
    }
    head = OpenVocabularySegmentationHead(**{**settings, **kwargs})
    head.set_classes(random_classes([0, 0, 1, 2]), seen)
    return head


def levels(shapes: dict[str, Any] = SHAPES, height: int = 32, width: int = 48) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = {n: (int(height / s.stride), int(width / s.stride)) for n, s in shapes.items()}
    return {n: torch.randn(2, 6, *size, generator=generator) for n, size in sizes.items()}


def cosines_by_hand(head: Any, features: dict[str, Tensor]) -> np.ndarray:
    """[B, 3, h, w] in double precision, from the embeddings before the comparison."""
    embedded = SegmentationHead.layers(head, features).detach().double().numpy()
    vectors = random_classes([0, 0, 1, 2]).vectors.double().numpy()
    found = np.zeros((2, 4, *embedded.shape[2:]))
    for b, p, y, x in np.ndindex(*found.shape):
        pixel = embedded[b, :, y, x]
        found[b, p, y, x] = pixel @ vectors[p] / np.sqrt((pixel**2).sum())
    return np.stack([found[:, :2].max(axis=1), found[:, 2], found[:, 3]], axis=1)


def test_the_logits_are_the_temperature_times_the_cosine() -> None:
    head, features = make_head().eval(), levels()
    assert head.predictor.out_channels == EMBED
    logits = head.layers(features)
    assert logits.shape == (2, 3, 8, 12)
    expected = torch.from_numpy(20.0 * cosines_by_hand(head, features))
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=2e-5)
    enlarged = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
    result, losses = head(features)
    assert losses == {} and torch.equal(result, enlarged)


def test_the_loss_is_that_of_the_seen_classes() -> None:
    """As if the unseen class and the pixels labelled as such were not there."""
    head, features = make_head(seen=(True, False, True), loss_weight=0.5).train(), levels()
    labels = torch.randint(0, 3, (2, 32, 48), generator=torch.Generator().manual_seed(2))
    labels[:, :5] = 255
    _, losses = head(features, labels)
    cosines = torch.from_numpy(cosines_by_hand(head, features)[:, [0, 2]])
    logits = F.interpolate(20.0 * cosines, (32, 48), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(logits, torch.tensor([0, -100, 1] + [-100] * 253)[labels])
    assert losses["loss_sem_seg"].item() == pytest.approx(0.5 * expected.item(), rel=1e-5)
    losses["loss_sem_seg"].backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_no_pixel_with_a_label() -> None:
    head = make_head(seen=(True, False, True)).train()
    labels = torch.full((2, 32, 48), 255)
    labels[:, 10:] = 1  # unseen
    _, losses = head(levels(), labels)
    losses["loss_sem_seg"].backward()
    assert losses["loss_sem_seg"].item() == 0
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


def test_other_classes_change_no_weight() -> None:
    head = make_head().eval()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    assert "classifier.temperature" in before and "classifier.vectors" not in before
    for groups in ([0], list(range(40))):
        head.set_classes(random_classes(groups), (True,) * (max(groups) + 1))
        assert head(levels())[0].shape == (2, max(groups) + 1, 32, 48)
    after = head.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with pytest.raises(VocabularyError, match="2 dimensions, the head has 5"):
        wrong = ClassEmbeddings(torch.eye(2), torch.arange(2), torch.zeros(2))
        head.set_classes(wrong, (True, True))


def test_the_strides_of_a_vit_with_patches_of_14() -> None:
    shapes = {f"p{i}": ShapeSpec(channels=6, stride=3.5 * 2 ** (i - 2)) for i in (2, 3, 4)}
    head = make_head(input_shape=shapes, common_stride=3.5).eval()
    assert head(levels(shapes, 56, 84))[0].shape == (2, 3, 56, 84)


def test_autocast_compares_in_full_precision() -> None:
    head, features = make_head().eval(), levels()
    with torch.autocast("cpu", torch.bfloat16):
        assert head.layers(features).dtype == torch.float32


def test_a_learned_background_is_refused() -> None:
    classifier = CosineClassifier(EMBED, background="learned")
    with pytest.raises(ConfigError, match='no background class; set background="text"'):
        make_head(classifier=classifier)


def test_a_class_numbered_as_the_ignored_label_is_refused_in_training() -> None:
    head, labels = make_head().train(), torch.zeros(2, 32, 48, dtype=torch.int64)
    head.set_classes(random_classes(list(range(256))), (True,) * 256)
    with pytest.raises(ConfigError, match="ignore_value=255 is the label of one of the 256"):
        head(levels(), labels)
    assert head.eval()(levels())[0].shape == (2, 256, 32, 48)
