"""Box and mask pooling against torchvision, hand-made numbers and the reference vectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import roi_align

from densedet.regions import pool_boxes, pool_masks, pooling

STRIDE = 16


def random_boxes(count: int, low: float, high: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, 2, generator=generator) * (high - low) + low
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


def tiny(count: int, seed: int) -> Tensor:
    boxes = random_boxes(count, 0, 200, seed)
    boxes[:, 2:] = boxes[:, :2] + torch.rand(count, 2) * 5
    return boxes


def dense_map(height: int = 12, width: int = 17, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 7, height, width, generator=generator).to(dtype)


CASES = {
    "inside": [random_boxes(9, 0, 190, 1), random_boxes(5, 0, 190, 2)],
    "partly outside": [random_boxes(40, -150, 400, 3), random_boxes(3, -150, 400, 4)],
    "wholly outside": [random_boxes(5, -300, -20, 5), random_boxes(5, 300, 500, 6)],
    "much larger": [random_boxes(4, -9000, 9000, 7), torch.tensor([[-5e3, 3, 7e3, 190.0]])],
    "tiny": [tiny(20, 8), tiny(1, 9)],
    "on the borders": [
        torch.tensor(
            [
                [-8.0, -8, 8, 8],  # the first sample is at -1 exactly
                [-24, -24, -8, -8],
                [264, 184, 280, 200],
                [272, 192, 272.5, 192.5],
                [0, 0, 272, 192],
                [-16, 0, 0, 16],
            ]
        ),
        torch.zeros(0, 4),
    ],
    "degenerate": [
        torch.tensor([[5.0, 5, 5, 5], [10, 10, 5, 20], [10, 20, 30, 10], [20, 20, 9, 9]]),
        torch.tensor([[16.0, 16, 32, 16]]),
    ],
    "none in one image": [torch.zeros(0, 4), random_boxes(3, 0, 190, 10)],
    "none at all": [torch.zeros(0, 4), torch.zeros(0, 4)],
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(12, 17), (1, 17), (1, 1)])
def test_boxes_equal_roi_align_forward_and_backward(case: str, shape: tuple[int, int]) -> None:
    ours, theirs = (dense_map(*shape).requires_grad_() for _ in range(2))
    found = pool_boxes(ours, CASES[case], STRIDE)
    expected = roi_align(theirs, CASES[case], 1, 1 / STRIDE, -1, aligned=True)[..., 0, 0]
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    gradient = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (found * gradient).sum().backward()
    (expected * gradient).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=2e-5)


def test_small_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = [random_boxes(30, -50, 300, 1), random_boxes(11, -50, 300, 2)]
    expected = pool_boxes(dense_map(), boxes, STRIDE)
    monkeypatch.setattr(pooling, "_CHUNK", 12 * 17 * 4)
    torch.testing.assert_close(pool_boxes(dense_map(), boxes, STRIDE), expected)


def test_fractional_stride_and_memory_layouts() -> None:
    boxes = [random_boxes(9, 0, 40, 1), random_boxes(5, 0, 40, 2)]
    dense = dense_map()
    expected = roi_align(dense, boxes, 1, 1 / 3.5, -1, aligned=True)[..., 0, 0]
    torch.testing.assert_close(pool_boxes(dense, boxes, 3.5), expected, rtol=0, atol=2e-6)
    for view in (dense.contiguous(memory_format=torch.channels_last), dense.mT.contiguous().mT):
        torch.testing.assert_close(pool_boxes(view, boxes, 3.5), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype, atol", [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_other_dtypes(dtype: torch.dtype, atol: float) -> None:
    boxes = [random_boxes(9, 0, 190, 1), random_boxes(5, 0, 190, 2)]
    dense = dense_map(dtype=dtype)
    found = pool_boxes(dense, boxes, STRIDE)
    assert found.dtype == dtype
    boxes64 = [b.double() for b in boxes]
    expected = roi_align(dense.double(), boxes64, 1, 1 / STRIDE, -1, aligned=True)[..., 0, 0]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)


def test_autocast_does_not_lower_the_precision() -> None:
    boxes = [random_boxes(9, 0, 190, 1), random_boxes(5, 0, 190, 2)]
    with torch.autocast("cpu", torch.bfloat16):
        found = pool_boxes(dense_map(), boxes, STRIDE)
    assert torch.equal(found, pool_boxes(dense_map(), boxes, STRIDE))


@pytest.mark.parametrize(
    ("dtype", "autocast"),
    [(torch.bfloat16, False), (torch.bfloat16, True), (torch.float16, False)],
)
def test_weights_of_a_lower_precision_map_are_not_rounded(
    dtype: torch.dtype, autocast: bool
) -> None:
    """The result is that of the map in fp32, rounded once; rounded weights would be off by more."""
    dense, boxes = dense_map(), random_boxes(40, 0, 190, 5)
    cells = torch.rand(40, *dense.shape[2:], generator=torch.Generator().manual_seed(1))
    lists, masks = [boxes] * len(dense), [cells] * len(dense)
    low = dense.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = pool_boxes(low, lists, 16.0), pool_masks(low, masks)
    expected = pool_boxes(low.float(), lists, 16.0), pool_masks(low.float(), masks)
    for low_vectors, vectors in zip(found, expected, strict=True):
        assert low_vectors.dtype == dtype and vectors.abs().max() > 0.1
        eps = torch.finfo(dtype).eps / 2  # of one rounding to the nearest
        torch.testing.assert_close(low_vectors.float(), vectors, rtol=1.01 * eps, atol=1e-6)


def test_box_of_whole_cells_is_their_mean() -> None:
    dense = torch.zeros(1, 1, 8, 8)
    dense[0, 0, 2, 3:5] = torch.tensor([1.0, 5.0])
    # In cells: rows 2..3, columns 3..5; the samples lie on the cell centres.
    box = torch.tensor([[3.0, 2, 5, 3]]) * STRIDE
    assert pool_boxes(dense, [box], STRIDE).item() == pytest.approx(3.0)


@pytest.mark.cuda
@pytest.mark.parametrize("case", CASES)
def test_boxes_on_cuda(case: str) -> None:
    ours = dense_map().cuda().requires_grad_()
    reference = dense_map().requires_grad_()
    found = pool_boxes(ours, [b.cuda() for b in CASES[case]], STRIDE)
    expected = pool_boxes(reference, CASES[case], STRIDE)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=2e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.grad.cpu(), reference.grad, rtol=1e-4, atol=1e-4)


def test_masks_are_means_over_cells() -> None:
    dense = dense_map(4, 5)
    first = torch.zeros(3, 4, 5, dtype=torch.bool)
    first[0, 1, 2] = True
    first[1, :2] = True
    second = torch.rand(1, 4, 5, generator=torch.Generator().manual_seed(1))
    found = pool_masks(dense, [first, second])
    torch.testing.assert_close(found[0], dense[0, :, 1, 2])
    torch.testing.assert_close(found[1], dense[0, :, :2].mean(dim=(1, 2)))
    assert torch.equal(found[2], torch.zeros(7))  # the empty mask
    weighted = (dense[1] * second[0]).sum(dim=(1, 2)) / second[0].sum()
    torch.testing.assert_close(found[3], weighted)


def test_mask_gradient_is_the_share_of_the_cell() -> None:
    dense = dense_map(4, 5).requires_grad_()
    mask = torch.zeros(1, 4, 5, dtype=torch.bool)
    mask[0, 0, :4] = True
    pool_masks(dense, [mask, mask[:0]]).sum().backward()
    expected = torch.zeros(2, 7, 4, 5)
    expected[0, :, 0, :4] = 0.25
    torch.testing.assert_close(dense.grad, expected)


@pytest.mark.parametrize("boxes", [[torch.zeros(1, 4)], [torch.zeros(1, 4)] * 3])
def test_wrong_number_of_images(boxes: list[Tensor]) -> None:
    with pytest.raises(ValueError, match=f"{len(boxes)} lists of boxes for a batch of 2"):
        pool_boxes(dense_map(), boxes, STRIDE)
    with pytest.raises(ValueError, match="lists of masks"):
        pool_masks(dense_map(), [torch.zeros(1, 12, 17) for _ in boxes])


def test_wrong_shapes_name_the_image() -> None:
    with pytest.raises(ValueError, match=r"boxes of image 1 must be \[K, 4\]"):
        pool_boxes(dense_map(), [torch.zeros(1, 4), torch.zeros(1, 5)], STRIDE)
    with pytest.raises(ValueError, match=r"masks of image 1 must be \[K, 12, 17\]"):
        pool_masks(dense_map(), [torch.zeros(1, 12, 17), torch.zeros(1, 17, 12)])
    with pytest.raises(ValueError, match="B, D, h, w"):
        pool_boxes(torch.zeros(7, 12, 17), [torch.zeros(1, 4)], STRIDE)


REFERENCES = {
    "eva": ("eva_tiny_outputs.npz", "roi"),
    "openai_vit": ("openai_vit_tiny_outputs.npz", "roi_v2"),
    "openai_rn": ("openai_rn_tiny_outputs.npz", "roi_v2"),
}


@pytest.mark.golden
@pytest.mark.parametrize("name", REFERENCES)
def test_reference_regions(name: str, golden_dir: Path, golden_index: dict[str, Any]) -> None:
    file, key = REFERENCES[name]
    with np.load(golden_dir / file) as arrays:
        values = {k: torch.from_numpy(np.array(arrays[k])) for k in arrays.files}
    for size in golden_index[name]["sizes"]:
        tag, height, width = size["tag"], size["h"], size["w"]
        dense = F.normalize(values[f"{tag}/dense"], dim=1)
        boxes = values[f"{tag}/boxes"] * torch.tensor([width, height, width, height])
        index = values[f"{tag}/boxes_image_index"]
        per_image = [boxes[index == i] for i in range(len(dense))]
        found = pool_boxes(dense, per_image, height / dense.shape[2])
        torch.testing.assert_close(found, values[f"{tag}/{key}"], rtol=0, atol=1e-5)
        index = values[f"{tag}/masks_image_index"]
        masks = [values[f"{tag}/masks"][index == i] for i in range(len(dense))]
        found = pool_masks(dense, masks)
        torch.testing.assert_close(found, values[f"{tag}/mask_pooled"], rtol=0, atol=1e-5)
