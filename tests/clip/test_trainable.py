"""Which parameters train: the reference's lists, and gradients of a real step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densedet.clip import build_visual, create_visual, unlock
from densedet.clip.checkpoints import to_eva_clip_keys
from densedet.clip.visual import ClipVisual
from densedet.engine.optim import get_parameters
from densedet.errors import ConfigError

Arrays = Callable[[str], dict[str, Tensor]]


def trained(visual: ClipVisual) -> set[str]:
    return {name for name, p in visual.tower.named_parameters() if p.requires_grad}


def released(names: list[str]) -> list[str]:
    """Names in the tower -> names in the published EVA files, in the same order."""
    return list(to_eva_clip_keys({f"visual.{name}": torch.zeros(0) for name in names}))


@pytest.fixture
def eva_groups(golden_dir: Path) -> dict[str, list[str]]:
    path = golden_dir / "eva_tiny_train_groups.json"
    groups: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return {kind: [n for n in names if n != "logit_scale"] for kind, names in groups.items()}


@pytest.fixture
def eva(make_clip: Any, golden_index: Any) -> ClipVisual:
    return build_visual(make_clip("eva", golden_index["eva"]))


@pytest.mark.golden
def test_eva_lists(
    eva: ClipVisual, eva_groups: dict[str, list[str]], golden_index: Any, golden_arrays: Arrays
) -> None:
    names = released(unlock(eva, golden_index["eva"]["depth"]))
    with_gradient = eva_groups["trainable_with_grad"]
    without_gradient = eva_groups["trainable_without_grad"]
    assert sorted(names) == sorted(with_gradient + without_gradient)
    everything = released([name for name, _ in eva.tower.named_parameters()])
    assert sorted(set(everything) - set(names)) == sorted(eva_groups["frozen"])

    eva.dense_map(golden_arrays("eva_tiny_train.npz")["images"])[:, 0].sum().backward()
    parameters = dict(zip(everything, eva.tower.parameters(), strict=True))
    found = {name for name, parameter in parameters.items() if parameter.grad is not None}
    assert found == set(with_gradient)
    assert all(parameters[name].grad is None for name in without_gradient)


@pytest.mark.golden
def test_eva_decay(eva: ClipVisual, eva_groups: dict[str, list[str]], golden_index: Any) -> None:
    unlock(eva, golden_index["eva"]["depth"])
    groups = get_parameters(eva, weight_decay_1d=0.0)
    decays = {id(p): group.get("weight_decay", 0.1) for group in groups for p in group["params"]}
    names = released([name for name, _ in eva.tower.named_parameters()])
    found: dict[float, list[str]] = {0.0: [], 0.1: []}
    for name, parameter in zip(names, eva.tower.parameters(), strict=True):
        if id(parameter) in decays:
            found[decays[id(parameter)]].append(name)
    assert sorted(found[0.1]) == sorted(eva_groups["decay"])
    assert sorted(found[0.0]) == sorted(eva_groups["no_decay"])


@pytest.mark.golden
@pytest.mark.parametrize("key, family", [("vit", "vit"), ("rn", "resnet")])
def test_openai_lists(
    make_clip: Any, golden_dir: Path, golden_index: Any, key: str, family: str
) -> None:
    path = golden_dir / "openai_trainable.json"
    lists = json.loads(path.read_text(encoding="utf-8"))[key]
    visual = build_visual(make_clip(family, golden_index[f"openai_{key}"]))
    for count, expected in lists.items():
        found = [f"visual.{name}" for name in unlock(visual, int(count))]
        assert sorted(found) == sorted(expected), count
        assert trained(visual) == {name.removeprefix("visual.") for name in found}


def test_the_last_group_of_a_vit_is_its_stem(make_clip: Any) -> None:
    visual = build_visual(make_clip("vit"))
    before, names = unlock(visual, visual.depth + 1), unlock(visual, visual.depth + 2)
    stem = {"class_embedding", "conv1.weight", "ln_pre.weight", "ln_pre.bias"}
    assert set(names) - set(before) == stem
    assert "proj" not in names and "ln_post.weight" not in names


def test_the_last_group_of_a_resnet_is_its_stem(make_clip: Any) -> None:
    visual = build_visual(make_clip("resnet"))
    before, names = unlock(visual, 4), unlock(visual, 5)
    assert set(names) - set(before) == {"conv1.weight", "conv2.weight", "conv3.weight"}


@pytest.mark.parametrize("family", ["eva", "vit", "resnet"])
def test_all_means_all_but_batch_norms(make_clip: Any, family: str) -> None:
    visual = build_visual(make_clip(family))
    names = unlock(visual, "all")
    norms = {
        f"{name}.{part}"
        for name, module in visual.tower.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for part in ("weight", "bias")
    }
    everything = [name for name, _ in visual.tower.named_parameters()]
    assert names == [name for name in everything if name not in norms]
    assert bool(norms) == (family == "resnet")


def test_batch_norms_of_a_convolution_stem_stay_frozen() -> None:
    visual = create_visual("densedet-tiny")
    names = unlock(visual, visual.depth + 2)
    assert "conv1.0.weight" in names and "conv1.1.weight" not in names
    assert "conv1.1.weight" not in unlock(visual, "all")


def test_a_later_call_replaces_the_earlier_one(make_clip: Any) -> None:
    visual = build_visual(make_clip("eva"))
    unlock(visual, "all")
    names = unlock(visual, 1)
    assert trained(visual) == set(names)
    assert {name.rsplit("blocks.")[1][0] for name in names} == {"2"}


@pytest.mark.parametrize(
    "family, groups, message",
    [
        ("eva", 0, r"0 groups of a TimmModel.*1\.\.3.*0 trains nothing.*every block"),
        ("vit", 0, r"0 groups of a VisionTransformer.*1\.\.5.*0 trains nothing"),
        ("eva", 4, r"4 groups of a TimmModel cannot be unlocked: give 1\.\.3, or 'all'$"),
        ("vit", 6, r"give 1\.\.5, or 'all'$"),
        ("resnet", 6, r"6 groups of a ModifiedResNet.*give 0\.\.5, or 'all'$"),
        ("eva", -1, r"-1 groups"),
        ("resnet", -1, r"give 0\.\.5"),
        ("vit", "some", r"'some' groups"),
    ],
)
def test_counts_that_are_refused(make_clip: Any, family: str, groups: Any, message: str) -> None:
    visual = build_visual(make_clip(family))
    before = trained(visual)
    with pytest.raises(ConfigError, match=message):
        unlock(visual, groups)
    assert trained(visual) == before
