import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

from densedet.modeling.backbone import PyramidFPN, TapPyramid

B16 = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
L14 = {"p2": 3.5, "p3": 7, "p4": 14, "p5": 28, "p6": 56}


class Levels(Backbone):
    """Hands given maps through."""

    def __init__(self, strides, channels=(2, 3, 4)):
        super().__init__()
        self.names = [f"l{i}" for i in range(len(strides))]
        self._shape = {
            name: ShapeSpec(channels=c, stride=s)
            for name, c, s in zip(self.names, channels, strides, strict=True)
        }

    def forward(self, maps):
        return dict(zip(self.names, maps, strict=True))

    def output_shape(self):
        return self._shape

    @property
    def size_divisibility(self):
        return 16

    @property
    def padding_constraints(self):
        return {}


@pytest.mark.parametrize(
    ("kind", "size", "strides"),
    [("b16", (128, 192), B16), ("l14", (112, 168), L14), ("resnet", (128, 192), B16)],
)
def test_shapes_and_strides_of_all_levels(make_pyramid, kind, size, strides):
    pyramid = make_pyramid(kind)
    shapes = pyramid.output_shape()
    assert {n: s.stride for n, s in shapes.items() if n != "vlm"} == strides
    assert list(shapes) == [*strides, "vlm"]
    levels = pyramid.eval()(torch.randn(2, 3, *size))
    assert set(levels) == set(shapes)
    for name, stride in strides.items():
        assert shapes[name].channels == 32
        expected = (2, 32, *(int(side / stride) for side in size))
        assert tuple(levels[name].shape) == expected
    dense = shapes["vlm"]
    assert tuple(levels["vlm"].shape) == (2, 24, *(side // dense.stride for side in size))
    assert set(pyramid.train()(torch.randn(1, 3, *size))) == set(strides)


def test_the_dense_map_passes_unchanged(make_pyramid):
    pyramid = make_pyramid("b16").eval()
    image = torch.randn(1, 3, 64, 64)
    clip = pyramid.bottom_up.bottom_up
    assert torch.equal(pyramid(image)["vlm"], clip(image)["vlm"])


@pytest.mark.parametrize("norm", ["GN", "SyncBN", ""])
def test_resizers(make_backbone, norm):
    backbone = make_backbone("b16")
    pyramid = TapPyramid(backbone, ["block0", "block1", "block2", "block3"], norm=norm).eval()
    assert {n: s.stride for n, s in pyramid.output_shape().items()} == {
        "res2": 4,
        "res3": 8,
        "res4": 16,
        "res5": 32,
        "vlm": 16,
    }
    image = torch.randn(1, 3, 64, 96)
    taps, levels = backbone.eval()(image), pyramid(image)

    def deconvolution(x, module):
        """2 x 2 with stride 2: every pixel becomes a block of its own."""
        assert module.kernel_size == module.stride == (2, 2)
        blocks = torch.einsum("bchw,cdij->bdhiwj", x, module.weight)
        return blocks.flatten(4, 5).flatten(2, 3) + module.bias[:, None, None]

    first, norm_layer, gelu, second = pyramid.resizers[0]
    assert isinstance(gelu, nn.GELU)
    expected = deconvolution(F.gelu(norm_layer(deconvolution(taps["block0"], first))), second)
    torch.testing.assert_close(levels["res2"], expected, rtol=1e-4, atol=1e-5)
    expected = deconvolution(taps["block1"], pyramid.resizers[1])
    torch.testing.assert_close(levels["res3"], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(levels["res4"], taps["block2"])
    blocks = taps["block3"].reshape(1, 32, 2, 2, 3, 2)
    assert torch.equal(levels["res5"], blocks.amax(dim=(3, 5)))
    kinds = {"GN": nn.GroupNorm, "SyncBN": nn.SyncBatchNorm, "": nn.Identity}
    assert type(norm_layer) is kinds[norm]


def test_fewer_levels_and_their_divisibility(make_backbone):
    backbone = make_backbone("b16")
    pyramid = TapPyramid(backbone, ["block0", "block1", "block3"], [2.0, 1.0, 0.5], norm="GN")
    assert [s.stride for s in pyramid.output_shape().values()][:3] == [8, 16, 32]
    assert pyramid.size_divisibility == 32
    fine = TapPyramid(backbone, ["block0", "block1"], [4.0, 2.0], norm="GN")
    assert fine.size_divisibility == 16  # of the tower


def test_scales_that_do_not_exist(make_backbone):
    backbone = make_backbone("b16")
    with pytest.raises(ValueError, match="scale 3: a tap can be resized by 4, 2, 1, 0.5 or"):
        TapPyramid(backbone, ["block0"], [3])
    with pytest.raises(ValueError, match="2 taps but 4 scales"):
        TapPyramid(backbone, ["block0", "block1"])


def test_levels_by_hand():
    """Laterals, nearest enlargement and sums, outputs, subsampling; plain convolutions."""
    torch.manual_seed(0)
    pyramid = PyramidFPN(
        Levels([4, 8, 16]), ["l0", "l1", "l2"], out_channels=5, norm="", extra_levels=2
    )
    with torch.no_grad():
        for convolution in (*pyramid.lateral, *pyramid.output):
            convolution.bias.normal_()
    maps = [torch.randn(1, c, s, s + 4) for c, s in ((2, 16), (3, 8), (4, 4))]
    maps = [m[..., : m.shape[2] // 4 * 5] for m in maps]  # 16 x 20, 8 x 10, 4 x 5
    lateral = [F.conv2d(m, c.weight, c.bias) for m, c in zip(maps, pyramid.lateral, strict=True)]
    top = lateral[2]
    middle = lateral[1] + top.repeat_interleave(2, 2).repeat_interleave(2, 3)
    bottom = lateral[0] + middle.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = [
        F.conv2d(m, c.weight, c.bias, padding=1)
        for m, c in zip((bottom, middle, top), pyramid.output, strict=True)
    ]
    expected += [expected[2][..., ::2, ::2], expected[2][..., ::4, ::4]]
    levels = pyramid(maps)
    assert list(levels) == ["p2", "p3", "p4", "p5", "p6"]
    for level, value in zip(levels.values(), expected, strict=True):
        torch.testing.assert_close(level, value)
    assert [s.stride for s in pyramid.output_shape().values()] == [4, 8, 16, 32, 64]


@pytest.mark.parametrize("norm", ["SyncBN", "GN"])
def test_norms_replace_the_biases(make_pyramid, norm):
    pyramid = make_pyramid("b16", norm=norm)
    kind = {"SyncBN": nn.SyncBatchNorm, "GN": nn.GroupNorm}[norm]
    convolutions = [*pyramid.lateral, *pyramid.output]
    assert len(convolutions) == 8
    for convolution in convolutions:
        assert convolution.bias is None and convolution.activation is None
        assert type(convolution.norm) is kind
    assert {c.kernel_size for c in pyramid.lateral} == {(1, 1)}
    assert {c.kernel_size for c in pyramid.output} == {(3, 3)}


@pytest.mark.parametrize("norm", ["", "GN"])
def test_equals_detectron2_where_strides_are_powers_of_two(norm):
    torch.manual_seed(0)
    strides, names = [4, 8, 16, 32], ["l0", "l1", "l2", "l3"]
    bottom_up = Levels(strides, channels=(2, 3, 4, 5))
    ours = PyramidFPN(bottom_up, names, out_channels=32, norm=norm)
    theirs = FPN(bottom_up, names, 32, norm=norm, top_block=LastLevelMaxPool())
    for level in range(4):
        for mine, name in ((ours.lateral, "fpn_lateral"), (ours.output, "fpn_output")):
            getattr(theirs, f"{name}{level + 2}").load_state_dict(mine[level].state_dict())
    maps = [torch.randn(1, c, 64 // s, 96 // s) for c, s in zip((2, 3, 4, 5), strides, strict=True)]
    levels, expected = ours(maps), theirs(maps)
    assert list(levels) == ["p2", "p3", "p4", "p5", "p6"] and set(expected) == set(levels)
    for name, level in levels.items():
        torch.testing.assert_close(level, expected[name])


def test_strides_must_double():
    with pytest.raises(ValueError, match=r"must double from level to level, got \[4, 8, 8\]"):
        PyramidFPN(Levels([4, 8, 8]), ["l0", "l1", "l2"])


def test_everything_but_the_tower_is_trained(make_pyramid):
    pyramid = make_pyramid("l14").train()
    levels = pyramid(torch.randn(2, 3, 112, 112))
    sum(level.square().mean() for level in levels.values()).backward()
    for name, parameter in pyramid.named_parameters():
        frozen = name.startswith("bottom_up.bottom_up.")
        assert parameter.requires_grad != frozen, name
        assert (parameter.grad is None) == frozen, name


def test_anchors_of_fractional_strides_are_exact(make_pyramid):
    """F-ViT L/14: anchors of 8 strides, centred on multiples of the stride."""
    pyramid = make_pyramid("l14").eval()
    strides = [s.stride for n, s in pyramid.output_shape().items() if n != "vlm"]
    assert strides == [3.5, 7, 14, 28, 56]
    generator = DefaultAnchorGenerator(
        sizes=[[8 * s] for s in strides], aspect_ratios=[1.0], strides=strides, offset=0.0
    )
    levels = pyramid(torch.randn(1, 3, 896, 896))
    anchors = generator([levels[f"p{i}"] for i in range(2, 7)])
    for stride, boxes in zip(strides, anchors, strict=True):
        cells = int(896 / stride)
        assert len(boxes) == cells**2
        half = 4 * stride
        grid = boxes.tensor.reshape(cells, cells, 4).double()
        for column in (0, 1, cells - 1):
            centre = column * stride
            assert grid[0, column].tolist() == [centre - half, -half, centre + half, half]
            assert grid[column, 0].tolist() == [-half, centre - half, half, centre + half]
        steps = grid[0, 1:, 0] - grid[0, :-1, 0]
        assert (steps == stride).all()
