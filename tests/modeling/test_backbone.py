import pytest
import torch
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.structures import ImageList

from densedet.modeling.backbone import ClipBackbone, PyramidFPN, TapPyramid


def images(count, height=64, width=64, seed=0):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ["ClipBackbone", "TapPyramid", "PyramidFPN"])
def test_registered_under_their_class_names(name):
    classes = {c.__name__: c for c in (ClipBackbone, TapPyramid, PyramidFPN)}
    assert BACKBONE_REGISTRY.get(name) is classes[name]


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [
        ("b16", (64, 96), {"block0": (32, 4, 6), "block3": (32, 4, 6), "vlm": (24, 4, 6)}),
        ("l14", (56, 112), {"block1": (32, 4, 8), "block2": (32, 4, 8), "vlm": (24, 4, 8)}),
        (
            "resnet",
            (64, 96),
            {"layer1": (32, 16, 24), "layer4": (256, 2, 3), "vlm": (24, 2, 3)},
        ),
    ],
)
def test_shapes_of_the_taps_and_of_the_dense_map(make_visual, kind, size, expected):
    taps = [name for name in expected if name != "vlm"]
    backbone = ClipBackbone(make_visual(kind), taps).eval()
    features = backbone(images(2, *size))
    assert {n: tuple(f.shape) for n, f in features.items()} == {
        n: (2, *shape) for n, shape in expected.items()
    }
    for name, spec in backbone.output_shape().items():
        assert spec.channels == features[name].shape[1]
        assert (size[0] / spec.stride, size[1] / spec.stride) == features[name].shape[2:]


def test_features_are_those_of_the_tower(make_backbone):
    backbone = make_backbone("b16").eval()
    batch = images(2)
    found = backbone.visual(batch, taps=["block0", "block3"])
    features = backbone(batch)
    torch.testing.assert_close(features["block0"], found.taps["block0"])
    torch.testing.assert_close(features["block3"], found.taps["block3"])
    torch.testing.assert_close(features["vlm"], found.dense)
    torch.testing.assert_close(features["vlm"].norm(dim=1), torch.ones(2, 4, 4))


def test_the_last_tap_is_the_value_path_in_training_too(make_backbone):
    backbone = make_backbone("b16")
    evaluated = backbone.eval()(images(1))["block3"]
    torch.testing.assert_close(backbone.train()(images(1))["block3"], evaluated)


def test_the_dense_map_is_made_in_evaluation_only(make_backbone):
    backbone = make_backbone("b16")
    assert set(backbone.train()(images(1))) == {"block0", "block1", "block2", "block3"}
    assert set(backbone.eval()(images(1))) == {"block0", "block1", "block2", "block3", "vlm"}


def test_a_frozen_tower_has_no_gradient_and_stays_in_evaluation(make_backbone):
    backbone = make_backbone("resnet")
    assert not any(p.requires_grad for p in backbone.parameters())
    statistics = {n: b.clone() for n, b in backbone.visual.named_buffers()}
    backbone.train()
    assert backbone.training
    assert not any(module.training for module in backbone.visual.modules())
    features = backbone(images(2))
    assert not any(f.requires_grad for f in features.values())
    for name, buffer in backbone.visual.named_buffers():
        assert torch.equal(buffer, statistics[name])


def test_a_tower_that_is_not_frozen_trains(make_backbone):
    backbone = make_backbone("b16", frozen=False).train()
    assert backbone.visual.training
    backbone(images(1))["block2"].square().sum().backward()
    assert backbone.visual.tower.conv1.weight.grad.abs().sum() > 0


def test_unknown_taps(make_visual):
    with pytest.raises(ValueError, match=r"no taps \['block9'\]; there are \['block0'"):
        ClipBackbone(make_visual("b16"), ["block1", "block9"])


# --- cache ----------------------------------------------------------------------------------------


@pytest.fixture
def cached(make_backbone):
    return make_backbone("b16", cache_size=3).eval()


def test_the_same_image_is_encoded_once_and_gives_the_same(cached, make_backbone, count_calls):
    calls = count_calls(cached.visual)
    batch = images(2)
    expected = make_backbone("b16").eval()(batch)
    first, second = cached(batch), cached(batch.clone())
    assert calls == [2]
    assert set(first) == set(second) == set(expected)
    for name in expected:
        torch.testing.assert_close(first[name], expected[name])
        assert torch.equal(second[name], first[name])


def test_only_new_images_of_a_batch_are_encoded(cached, make_backbone, count_calls):
    calls = count_calls(cached.visual)
    batch = images(3)
    cached(batch[1:2])
    features = cached(batch)
    assert calls == [1, 2]
    expected = make_backbone("b16").eval()(batch)
    for name in expected:
        torch.testing.assert_close(features[name], expected[name])


def test_images_differ_by_content_and_by_size(cached, count_calls):
    calls = count_calls(cached.visual)
    image = images(1)
    other = image.clone()
    other[0, 2, 63, 63] += 1e-3
    cached(image)
    assert not torch.equal(cached(other)["vlm"], cached(image)["vlm"])
    zeros = torch.zeros(1, 3, 32, 64)
    assert cached(zeros)["vlm"].shape[2:] == (2, 4)
    assert cached(zeros.reshape(1, 3, 64, 32))["vlm"].shape[2:] == (4, 2)
    assert calls == [1, 1, 1, 1]


def test_the_least_recently_used_image_is_forgotten(cached, count_calls):
    calls = count_calls(cached.visual)
    a, b, c, d = images(4).split(1)
    for image in (a, b, c, a, d):  # d drops b
        cached(image)
    assert calls == [1, 1, 1, 1]
    for image in (a, c, d):
        cached(image)
    assert calls == [1, 1, 1, 1]
    cached(b)
    assert calls == [1, 1, 1, 1, 1]


def test_a_batch_larger_than_the_cache(cached, make_backbone, count_calls):
    calls = count_calls(cached.visual)
    batch = images(5)
    features = cached(batch)
    assert calls == [5] and len(features["vlm"]) == 5
    torch.testing.assert_close(features["vlm"], make_backbone("b16").eval()(batch)["vlm"])
    cached(batch[2:])  # the last three are kept
    assert calls == [5]
    cached(batch[:1])
    assert calls == [5, 1]


def test_what_is_cached_cannot_be_changed_from_outside(cached):
    image = images(1)
    first = cached(image)
    expected = first["block1"].clone()
    first["block1"].zero_()
    second = cached(image)
    torch.testing.assert_close(second["block1"], expected)
    second["block1"].zero_()
    assert torch.equal(cached(image)["block1"], expected)


def test_evaluating_again_keeps_the_cache_and_training_clears_it(cached, count_calls):
    calls = count_calls(cached.visual)
    cached(images(1))
    cached.eval()  # as an evaluation loop does at its start and end
    cached(images(1))
    assert calls == [1]
    cached.train()
    cached(images(1))
    cached(images(1))  # nothing is cached in training
    assert calls == [1, 1, 1]
    cached.eval()
    assert "vlm" in cached(images(1))
    assert calls == [1, 1, 1, 1]


def test_other_weights_clear_the_cache(cached, make_backbone):
    image = images(1)
    before = cached(image)["vlm"]
    state = {n: t + 0.1 * torch.randn_like(t) for n, t in cached.state_dict().items()}
    cached.load_state_dict(state)
    fresh = make_backbone("b16").eval()
    fresh.load_state_dict(state)
    after = cached(image)["vlm"]
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, fresh(image)["vlm"])


def test_other_weights_of_the_tower_alone_clear_the_cache(cached):
    before = cached(images(1))["vlm"]
    tower = cached.visual.tower
    tower.load_state_dict({n: 1.1 * t for n, t in tower.state_dict().items()})
    after = cached(images(1))["vlm"]
    assert not torch.allclose(after, before)
    cached.eval()._cache.clear()
    assert torch.equal(cached(images(1))["vlm"], after)


def test_each_precision_has_features_of_its_own(cached):
    before = cached(images(1))["block1"]
    with torch.autocast("cpu", torch.bfloat16):
        assert cached(images(1))["block1"].dtype == torch.bfloat16
    after = cached(images(1))["block1"]
    assert after.dtype == torch.float32 and torch.equal(after, before)


def test_a_conversion_of_the_weights_clears_the_cache(cached):
    before = cached(images(1))["vlm"]
    after = cached.bfloat16().float()(images(1))["vlm"]  # rounds the weights
    assert not torch.equal(after, before)
    torch.testing.assert_close(after, before, rtol=0.2, atol=0.05)


def test_only_frozen_towers_have_a_cache(make_backbone):
    with pytest.raises(ValueError, match="only if the tower is frozen"):
        make_backbone("b16", frozen=False, cache_size=1)


# --- padding --------------------------------------------------------------------------------------


def pad(backbone, sizes):
    return ImageList.from_tensors(
        [torch.ones(3, *size) for size in sizes],
        backbone.size_divisibility,
        padding_constraints=backbone.padding_constraints,
    )


@pytest.mark.parametrize("sizes", [[(40, 90)], [(40, 90), (96, 17)]])
def test_images_are_padded_to_squares(make_pyramid, sizes):
    padded = pad(make_pyramid("b16", square_size=96), sizes)
    assert padded.tensor.shape == (len(sizes), 3, 96, 96)
    assert padded.image_sizes == sizes
    for image, (height, width) in zip(padded.tensor, sizes, strict=True):
        assert image[:, :height, :width].min() == 1
        assert image.sum() == 3 * height * width


@pytest.mark.parametrize(
    ("kind", "expected"), [("b16", (64, 96)), ("l14", (56, 112)), ("resnet", (64, 96))]
)
def test_without_squares_sides_are_multiples_of_the_coarsest_stride(make_pyramid, kind, expected):
    pyramid = make_pyramid(kind)
    assert pyramid.size_divisibility == {"b16": 32, "l14": 28, "resnet": 32}[kind]
    assert pad(pyramid, [(40, 90)]).tensor.shape[2:] == expected


def test_a_backbone_alone_pads_to_its_own_stride(make_backbone):
    assert pad(make_backbone("b16"), [(40, 90)]).tensor.shape[2:] == (48, 96)
    assert pad(make_backbone("l14"), [(40, 90)]).tensor.shape[2:] == (42, 98)
