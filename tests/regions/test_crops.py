"""Cropping and resizing against Pillow, hand-made numbers and the reference vectors."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from densedet.regions import (
    crop_and_resize,
    crop_rectangles,
    grid_cells,
    normalise,
    scale_boxes,
    whole_image,
)
from densedet.regions import crops as crops_module

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
GREY = 1 / 255 / min(STD) + 1e-6  # one grey level after normalisation
BACKENDS = ["device", "pil"]


def noise(height: int, width: int, seed: int = 0, levels: int = 256) -> Tensor:
    """Random pixels; with two levels (black and white) the filter is clipped everywhere."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, levels, (3, height, width), generator=generator)
    return (values * (255 // (levels - 1))).to(torch.uint8)


def random_rectangles(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    left, upper = rng.integers(0, width, count), rng.integers(0, height, count)
    right, lower = rng.integers(left + 1, width + 1), rng.integers(upper + 1, height + 1)
    return torch.from_numpy(np.stack([left, upper, right, lower], axis=1))


def with_pillow(image: Tensor, rectangle: list[int], size: int, padding: str) -> np.ndarray:
    """The published preprocessing of one crop, ``[size, size, 3]``."""
    crop = Image.fromarray(image.permute(1, 2, 0).numpy()).crop(rectangle)
    longest = max(crop.size)
    width, height = (max(1, round(side * size / longest)) for side in crop.size)
    square = Image.new("RGB", (size, size))
    corner = ((size - width) // 2, (size - height) // 2) if padding == "centre" else (0, 0)
    square.paste(crop.resize((width, height), Image.Resampling.BICUBIC), corner)
    return np.asarray(square)


def largest_difference(a: Tensor, b: Tensor) -> int:
    assert a.dtype == b.dtype == torch.uint8 and a.shape == b.shape
    return int((a.int() - b.int()).abs().max())


def test_pil_backend_is_pillow():
    images = [noise(37, 50), noise(64, 20, seed=1)]
    rectangles = [random_rectangles(5, 37, 50), random_rectangles(4, 64, 20, seed=1)]
    for padding in ("centre", "corner"):
        found = crop_and_resize(images, rectangles, 33, padding, "pil")
        expected = [
            with_pillow(image, rectangle, 33, padding)
            for image, rows in zip(images, rectangles, strict=True)
            for rectangle in rows.tolist()
        ]
        assert found.dtype == torch.uint8
        assert np.array_equal(found.permute(0, 2, 3, 1).numpy(), np.stack(expected))


@pytest.mark.parametrize("levels", [256, 2])
@pytest.mark.parametrize("padding", ["centre", "corner", "stretch"])
@pytest.mark.parametrize("size", [1, 7, 64, 100, 224])
def test_device_backend_equals_pillow(size, padding, levels):
    """Enlarged, reduced, thin and tiny rectangles; also exact here, one grey level is allowed."""
    shapes = [(1, 1), (3, 200), (160, 3), (90, 70), (240, 320)]
    images = [noise(*shape, seed=i, levels=levels) for i, shape in enumerate(shapes)]
    rectangles = [
        torch.cat([random_rectangles(6, *shape, seed=i), whole_image(image)])
        for i, (image, shape) in enumerate(zip(images, shapes, strict=True))
    ]
    device, pil = (
        crop_and_resize(images, rectangles, size, padding, backend) for backend in BACKENDS
    )
    assert largest_difference(device, pil) <= 1
    assert torch.equal(device, pil)


@pytest.mark.parametrize("padding", ["centre", "corner"])
def test_one_pixel_and_one_line(padding):
    image = noise(40, 60)
    rectangles = torch.tensor([[5, 6, 6, 7], [0, 3, 60, 4], [59, 0, 60, 40], [0, 0, 2, 1]])
    device, pil = (crop_and_resize([image], [rectangles], 32, padding, b) for b in BACKENDS)
    assert torch.equal(device, pil)
    assert torch.equal(device[0], image[:, 6:7, 5:6].expand(3, 32, 32))
    # a line of 60 pixels becomes round(32 / 60) = 1 high, 15 rows of padding are above it
    rows = device[1].any(dim=2).any(dim=0).nonzero().flatten().tolist()
    assert rows == [15 if padding == "centre" else 0]


def test_large_reduction():
    """One of 12 times, where the filter has 49 taps; by Pillow 13 the columns come first."""
    image = noise(1200, 260, levels=2)
    rectangles = torch.tensor([[0, 0, 260, 1200], [3, 1, 203, 1190]])
    device, pil = (crop_and_resize([image], [rectangles], 100, backend=b) for b in BACKENDS)
    assert torch.equal(device, pil)


def test_equal_size_is_a_copy():
    image = noise(24, 24)
    for backend in BACKENDS:
        found = crop_and_resize([image], [torch.tensor([[0, 0, 24, 24]])], 24, backend=backend)
        assert torch.equal(found[0], image)


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_outside_the_rectangle_have_no_influence(backend):
    image, other = noise(50, 60), noise(50, 60, seed=1)
    other[:, 10:30, 20:50] = image[:, 10:30, 20:50]
    rectangle = [torch.tensor([[20, 10, 50, 30]])]
    assert not torch.equal(image, other)
    assert torch.equal(
        crop_and_resize([image], rectangle, 48, backend=backend),
        crop_and_resize([other], rectangle, 48, backend=backend),
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_is_black_and_where_it_should_be(backend):
    white = torch.full((3, 10, 25), 255, dtype=torch.uint8)
    # 25 x 10 -> 32 x round(12.8) = 13: 19 rows of padding, 9 above
    centre = crop_and_resize([white], [whole_image(white)], 32, "centre", backend)[0]
    corner = crop_and_resize([white], [whole_image(white)], 32, "corner", backend)[0]
    expected = torch.zeros(3, 32, 32, dtype=torch.uint8)
    expected[:, 9:22] = 255
    assert torch.equal(centre, expected)
    assert torch.equal(corner, expected.roll(-9, dims=1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_without_rectangles(backend):
    images = [noise(20, 30), noise(30, 20)]
    none = torch.zeros(0, 4, dtype=torch.int64)
    assert crop_and_resize(images, [none, none], 8, backend=backend).shape == (0, 3, 8, 8)
    rectangle = torch.tensor([[1, 2, 11, 12]])
    found = crop_and_resize(images, [none, rectangle], 10, backend=backend)
    assert torch.equal(found[0], images[1][:, 2:12, 1:11])


def test_small_chunks_give_the_same(monkeypatch):
    images = [noise(90, 70), noise(240, 320, seed=1)]
    rectangles = [random_rectangles(7, 90, 70), random_rectangles(7, 240, 320)]
    whole = crop_and_resize(images, rectangles, 48)
    monkeypatch.setattr(crops_module, "_CHUNK", 5000)
    assert torch.equal(crop_and_resize(images, rectangles, 48), whole)


def test_strided_images_and_autocast():
    image = noise(40, 30)
    strided = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    rectangles = [random_rectangles(5, 40, 30)]
    expected = crop_and_resize([image], rectangles, 48)
    assert torch.equal(crop_and_resize([strided], rectangles, 48), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(crop_and_resize([image], rectangles, 48), expected)


@pytest.mark.cuda
@pytest.mark.parametrize("tf32", [False, True])
def test_cuda_equals_pillow(tf32):
    images = [noise(240, 320, levels=2), noise(90, 70, seed=1)]
    rectangles = [random_rectangles(12, 240, 320), random_rectangles(5, 90, 70)]
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        found = crop_and_resize([image.cuda() for image in images], rectangles, 96)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.cpu(), crop_and_resize(images, rectangles, 96, backend="pil"))


IMAGE = torch.zeros(3, 20, 30, dtype=torch.uint8)
BOX = torch.tensor([[0, 0, 10, 10]])


@pytest.mark.parametrize(
    ("images", "rectangles", "message"),
    [
        ([IMAGE.float()], [BOX], r"image 0 must be uint8 \[3, H, W\], got torch.float32 \(3, 20"),
        ([IMAGE, IMAGE[:1]], [BOX, BOX], r"image 1 must be uint8 \[3, H, W\]"),
        ([IMAGE[None]], [BOX], r"image 0 must be uint8 \[3, H, W\]"),
        ([IMAGE], [BOX.float()], r"rectangles of image 0 must be integers \[K, 4\]"),
        ([IMAGE], [BOX[0]], r"rectangles of image 0 must be integers \[K, 4\]"),
        ([IMAGE], [BOX, BOX], "2 lists of rectangles for 1 images"),
        ([], [], "0 lists of rectangles for 0 images"),
        ([IMAGE], [torch.tensor([[0, 0, 31, 10]])], r"\[0, 0, 31, 10\].*of 30x20 pixels"),
        ([IMAGE], [torch.tensor([[0, 0, 10, 21]])], r"\[0, 0, 10, 21\].*leaves the image"),
        ([IMAGE], [torch.tensor([[-1, 0, 10, 10]])], r"\[-1, 0, 10, 10\].*leaves the image"),
        ([IMAGE], [torch.tensor([[5, 5, 5, 10]])], r"\[5, 5, 5, 10\].*empty"),
    ],
)
def test_wrong_input(images, rectangles, message):
    with pytest.raises(ValueError, match=message):
        crop_and_resize(images, rectangles, 16)


def test_wrong_options():
    with pytest.raises(ValueError, match="padding 'middle'"):
        crop_and_resize([IMAGE], [BOX], 16, "middle")
    with pytest.raises(ValueError, match="backend 'gpu'"):
        crop_and_resize([IMAGE], [BOX], 16, backend="gpu")
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        crop_and_resize([IMAGE], [BOX], 0)


def test_crop_rectangles():
    boxes = torch.tensor(
        [
            [0.5, 1.5, 10.5, 11.5],  # halves go to the even number
            [-5.0, -5.0, 200.0, 200.0],
            [4.1, 4.1, 4.2, 4.2],
            [30.0, 20.0, 30.0, 20.0],  # at the lower right corner of the image
            [10.0, 4.0, 20.0, 8.0],
        ]
    )
    assert crop_rectangles(boxes, (20, 30)).tolist() == [
        [0, 2, 10, 12],
        [0, 0, 30, 20],
        [4, 4, 5, 5],
        [29, 19, 30, 20],
        [10, 4, 20, 8],
    ]
    # 0.75 of the sides on both sides of the centre (15, 6): 7.5..22.5 and 3..9
    assert crop_rectangles(boxes[4:], (20, 30), enlarge=1.5).tolist() == [[8, 3, 22, 9]]
    assert crop_rectangles(boxes[:0], (20, 30), 1.5).shape == (0, 4)


def test_scale_boxes_and_whole_image():
    boxes = torch.tensor([[0.0, 0, 30, 20], [15, 5, 30, 10]])
    assert scale_boxes(boxes, (20, 30), 60).tolist() == [[0, 0, 60, 40], [30, 10, 60, 20]]
    assert whole_image(IMAGE).tolist() == [[0, 0, 30, 20]]


def test_normalise():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1)
    found = normalise(pixels, (0.0, 0.2, 0.5), (1.0, 0.5, 0.25))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.flatten(), torch.tensor([0.0, 0.0, 2.0]), rtol=0, atol=1e-7)
    tensors = torch.tensor([0.0, 0.2, 0.5]), torch.tensor([1.0, 0.5, 0.25])
    assert torch.equal(normalise(pixels[None], *tensors)[0], found)


@pytest.fixture(scope="session")
def grid(golden_dir: Path) -> Callable[[str], Tensor]:
    """The arrays of ``grid.npz``."""
    arrays = np.load(golden_dir / "grid.npz")
    return lambda name: torch.from_numpy(arrays[name])


@pytest.mark.golden
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_student_image(grid, golden_index, backend):
    size = golden_index["grid"]["img_S"]
    image = grid("image").permute(2, 0, 1)
    found = crop_and_resize([image], [whole_image(image)], size, "corner", backend)
    tolerance = 1e-6 if backend == "pil" else GREY
    difference = normalise(found, MEAN, STD)[0] - grid("image/student")
    assert difference.abs().max() <= tolerance


@pytest.mark.golden
@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_teacher_crops(grid, golden_index, backend):
    settings: dict[str, Any] = golden_index["grid"]
    image = grid("image").permute(2, 0, 1)
    image_size = (image.shape[1], image.shape[2])
    for rows, columns in settings["pairs"]:
        boxes = grid_cells(image_size, rows, columns)
        rectangles = crop_rectangles(boxes, image_size)
        found = crop_and_resize([image], [rectangles], settings["img_crop"], "centre", backend)
        difference = normalise(found, MEAN, STD) - grid(f"image/crops_{rows}x{columns}")
        assert difference.abs().max() <= (1e-6 if backend == "pil" else GREY)
        student = scale_boxes(boxes, image_size, settings["img_S"]) / settings["img_S"]
        expected = grid(f"image/student_boxes_{rows}x{columns}")
        torch.testing.assert_close(student, expected, rtol=0, atol=1e-6)


@pytest.mark.golden
def test_golden_content_sizes(grid, golden_index):
    """The size of the resized image before it is padded: where a white image is not black."""
    settings = golden_index["grid"]
    for i, (height, width) in enumerate(settings["sizes"]):
        white = torch.full((3, height, width), 255, dtype=torch.uint8)
        for j, size in enumerate(settings["S"]):
            square = crop_and_resize([white], [whole_image(white)], size, "corner")[0, 0]
            found = [int(square[:, 0].count_nonzero()), int(square[0].count_nonzero())]
            assert found == grid("content_hw")[i, j].tolist()


def test_auto_is_pillow_on_the_cpu():
    images, rectangles = [IMAGE], [BOX]
    found = crop_and_resize(images, rectangles, 40, backend="auto")
    assert torch.equal(found, crop_and_resize(images, rectangles, 40, backend="pil"))
