import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.ops import roi_align

from densedet.modeling.roi_heads import StridePooler


def random_boxes(count, size, seed):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size * 0.7
    # sides from four pixels to twice the image, on a logarithmic scale
    side = 4 * (2.0 * size / 4) ** torch.rand(count, 2, generator=generator)
    return Boxes(torch.cat([corner, corner + side], dim=1))


def random_maps(strides, size, batch=2, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, channels, round(size / s), round(size / s), generator=generator)
        for s in strides
    ]


def squares(sides):
    return Boxes(torch.tensor([[3.0, 5.0, 3.0 + s, 5.0 + s] for s in sides]))


@pytest.mark.parametrize("output_size", [7, 14])
def test_equals_detectron2_where_strides_are_powers_of_two(output_size):
    strides, size = [4, 8, 16, 32], 640
    maps = random_maps(strides, size)
    boxes = [random_boxes(40, size, seed=1), random_boxes(25, size, seed=2)]
    ours = StridePooler(output_size, strides)
    theirs = ROIPooler(
        output_size, [1 / s for s in strides], sampling_ratio=0, pooler_type="ROIAlignV2"
    )
    assert len(ours.assign_levels(boxes).unique()) == 4
    torch.testing.assert_close(ours(maps, boxes), theirs(maps, boxes))


@pytest.mark.parametrize("strides", [[4, 8, 16, 32], [3.5, 7.0, 14.0, 28.0]])
def test_levels_by_the_56_pixel_rule_whatever_the_strides(strides):
    pooler = StridePooler(7, strides)
    sides = [1, 55, 56, 111, 112, 223, 224, 447, 448, 895, 5000]
    levels = [0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert pooler.assign_levels([squares(sides)]).tolist() == levels


def test_the_level_depends_on_the_area_and_on_all_images():
    pooler = StridePooler(7, [3.5, 7.0, 14.0, 28.0])
    wide = Boxes(torch.tensor([[0.0, 0.0, 448.0, 28.0]]))  # the area of 112 x 112
    assert pooler.assign_levels([wide, squares([300, 20])]).tolist() == [1, 2, 0]


def test_base_size():
    pooler = StridePooler(7, [4, 8, 16], base_size=14.0)
    assert pooler.assign_levels([squares([13, 27, 28, 55, 56, 200])]).tolist() == [0, 0, 1, 1, 2, 2]


def test_strides_of_patches_of_14_pixels():
    strides, size = [3.5, 7.0, 14.0, 28.0], 560
    maps = random_maps(strides, size, batch=1)
    sides = [30, 130, 250, 470]  # levels 0, 1, 2, 3
    pooled = StridePooler(7, strides)(maps, [squares(sides)])
    assert pooled.shape == (4, 3, 7, 7)
    for level, side in enumerate(sides):
        rois = torch.tensor([[0.0, 3.0, 5.0, 3.0 + side, 5.0 + side]])
        expected = roi_align(maps[level], rois, 7, 1 / strides[level], -1, True)
        torch.testing.assert_close(pooled[level : level + 1], expected)


def test_a_ramp_is_pooled_at_the_centres_of_the_cells():
    # the map holds its own x coordinate in pixels: cells of a box are pooled to their centres
    strides = [3.5, 7.0]
    maps = [
        ((torch.arange(n) + 0.5) * s).expand(1, 1, n, n)
        for s, n in ((3.5, 64), (7.0, 32))  # 224 pixels
    ]
    box = Boxes(torch.tensor([[70.0, 30.0, 98.0, 58.0], [42.0, 14.0, 182.0, 154.0]]))
    pooled = StridePooler(4, strides)(maps, [box])
    small = torch.tensor([73.5, 80.5, 87.5, 94.5])
    large = torch.tensor([59.5, 94.5, 129.5, 164.5])
    torch.testing.assert_close(pooled[0, 0], small.expand(4, 4))
    torch.testing.assert_close(pooled[1, 0], large.expand(4, 4))


def test_images_without_boxes():
    maps = random_maps([4, 8], 64)
    pooler = StridePooler(5, [4, 8])
    nothing = Boxes(torch.zeros(0, 4))
    assert pooler(maps, [nothing, nothing]).shape == (0, 3, 5, 5)
    some = squares([20, 60])
    pooled = pooler(maps, [nothing, some])
    torch.testing.assert_close(pooled, pooler([m[1:] for m in maps], [some]))


def test_boxes_without_area_go_to_the_finest_level():
    pooler = StridePooler(5, [4, 8])
    flat = Boxes(torch.tensor([[10.0, 10.0, 10.0, 10.0], [5.0, 5.0, 50.0, 5.0]]))
    assert pooler.assign_levels([flat]).tolist() == [0, 0]
    assert pooler(random_maps([4, 8], 64, batch=1), [flat]).isfinite().all()


def test_gradients_reach_every_level():
    strides = [3.5, 7.0, 14.0, 28.0]
    maps = [m.requires_grad_() for m in random_maps(strides, 560, batch=1)]
    boxes = [squares([30, 130, 250, 470])]
    pooled = StridePooler(3, strides)(maps, boxes)
    pooled.sum().backward()
    for level in maps:
        # the bilinear weights of every sample, and of every mean of samples, sum to one
        torch.testing.assert_close(level.grad.sum(), torch.tensor(3.0 * 9))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_boxes_are_not_rounded_to_the_dtype_of_the_maps(dtype):
    # in bf16 the numbers around 601.7 are 4 apart
    maps = random_maps([4, 8], 1024, batch=1)
    halves = [m.to(dtype) for m in maps]
    box = [Boxes(torch.tensor([[601.7, 433.3, 641.9, 470.2], [333.3, 401.1, 601.7, 655.5]]))]
    pooler = StridePooler(7, [4, 8])
    pooled = pooler(halves, box)
    assert pooled.dtype == dtype
    expected = pooler([m.float() for m in halves], box).to(dtype)
    torch.testing.assert_close(pooled, expected)


def test_number_of_maps():
    with pytest.raises(ValueError, match="3 feature maps for 2 strides"):
        StridePooler(7, [4, 8])(random_maps([4, 8, 16], 64), [squares([9]), squares([9])])


def test_the_pooled_grids_are_written_in_place():
    """A copy of all boxes for every level would cost memory and time."""
    names = []

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            names.append(operator.name())
            return operator(*args, **(kwargs or {}))

    pooler = StridePooler(7, [4, 8, 16, 32])
    with Operators():
        pooler(random_maps([4, 8, 16, 32], 128), [random_boxes(9, 128, 1), random_boxes(4, 128, 2)])
    assert names.count("aten::index_put_") == 4 and "aten::index_put" not in names
