"""The interpolation of two towers' weights against vectors of the published reference."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densedet.clip import ClipVisual, build_visual, load_checkpoint
from densedet.clip.checkpoints import to_eva_clip_keys
from densedet.engine.interpolation import WeightInterpolation

pytestmark = pytest.mark.golden

Arrays = Callable[[str], dict[str, Tensor]]


class Pair(nn.Module):
    """What the hook needs of a model."""

    def __init__(self, student: ClipVisual, teacher: ClipVisual) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher


@pytest.fixture
def pair(make_clip: Any, golden_index: Any, golden_arrays: Arrays, tmp_path: Path) -> Pair:
    """The reference's student and teacher, from files in the released format."""
    teacher = {
        **golden_arrays("text_eva_tiny_weights.npz"),
        **golden_arrays("eva_tiny_weights.npz"),
    }
    student = {**teacher, **golden_arrays("eva_tiny_student.npz")}
    towers = []
    for state in (student, teacher):
        torch.save(state, tmp_path / "released.pt")
        model = make_clip("eva", golden_index["eva"], golden_index["text"], seed=None)
        load_checkpoint(model, tmp_path / "released.pt")
        towers.append(build_visual(model).eval())
    return Pair(*towers)


@torch.no_grad()
def test_outputs_and_weights(pair: Pair, golden_index: Any, golden_arrays: Arrays) -> None:
    expected, inputs = golden_arrays("eva_tiny_train.npz"), golden_arrays("eva_tiny_outputs.npz")
    before = {name: value.clone() for name, value in pair.student.state_dict().items()}
    tags = [size["tag"] for size in golden_index["eva"]["sizes"]]
    (tag,) = [tag for tag in tags if f"interpolated/dense_{tag}" in expected]
    weights = [n.removeprefix("interpolated/") for n in expected if n.startswith("interpolated/v")]
    assert weights

    with WeightInterpolation(expected["alpha"].item()).evaluation_weights(pair):
        image_embed = pair.student.embed_images(inputs[f"{tags[0]}/images"])
        dense = pair.student(inputs[f"{tag}/images"], pooled=False).dense
        tower = {f"visual.{n}": v.clone() for n, v in pair.student.tower.state_dict().items()}

    tolerance = {"rtol": 0, "atol": 2e-5}
    torch.testing.assert_close(image_embed, expected["interpolated/image_embed"], **tolerance)
    torch.testing.assert_close(dense, expected[f"interpolated/dense_{tag}"], **tolerance)
    found = to_eva_clip_keys(tower)
    for name in weights:
        torch.testing.assert_close(found[name], expected[f"interpolated/{name}"], **tolerance)
    after = pair.student.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    plain = pair.student.embed_images(inputs[f"{tags[0]}/images"])
    assert (plain - image_embed).abs().max() > 1e-2  # the student alone would be noticed
