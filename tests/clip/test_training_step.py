"""One training step of CLIPSelf against vectors of the published reference, EVA and OpenAI ViT."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from densedet.clip import build_visual, load_checkpoint
from densedet.clip.checkpoints import to_eva_clip_keys
from densedet.engine.optim import get_parameters
from densedet.modeling.meta_arch import CLIPSelf
from densedet.regions import pool_boxes

pytestmark = pytest.mark.golden

Arrays = Callable[[str], dict[str, Tensor]]
FAMILIES = {"eva": "eva", "openai_vit": "vit"}
TEXTS = {"eva": "text_eva_tiny_weights.npz", "openai_vit": "text_openai_tiny_weights.npz"}


class Step:
    """The reference's student, teacher and inputs, after one backward pass."""

    def __init__(self, family: str, make_clip: Any, index: Any, arrays: Arrays, folder: Path):
        self.family, self.prefix = family, f"{family}_tiny"
        teacher = {**arrays(TEXTS[family]), **arrays(f"{self.prefix}_weights.npz")}
        student = {**teacher, **arrays(f"{self.prefix}_student.npz")}
        towers = []
        for state in (student, teacher):
            torch.save(state, folder / "released.pt")
            clip = make_clip(FAMILIES[family], index[family], index["text"], seed=None)
            load_checkpoint(clip, folder / "released.pt")
            towers.append(build_visual(clip))
        self.expected = arrays(f"{self.prefix}_train.npz")
        self.images, slots = self.expected["images"], self.expected["boxes"]
        height, width = self.images.shape[2:]
        scale = torch.tensor([width, height, width, height])
        self.boxes = [image[image[:, 4] > 0, :4] * scale for image in slots]
        self.model = CLIPSelf(
            *towers, student_size=max(height, width), trainable=index[family]["depth"]
        ).train()
        self.embeddings = self.model.teacher.embed_images(self.expected["crops"])
        losses = self.model.losses(self.images, self.boxes, self.embeddings)
        self.loss = losses["loss_cosine"]
        self.loss.backward()

    def gradients(self) -> dict[str, Tensor | None]:
        """Gradients of the student under the names of the released files."""
        named = self.model.student.tower.named_parameters()
        found = {f"visual.{name}": parameter for name, parameter in named}
        if self.family == "eva":
            found = to_eva_clip_keys(found)
        return {name: parameter.grad for name, parameter in found.items()}


@pytest.fixture(params=list(FAMILIES))
def step(request, make_clip, golden_index, golden_arrays, tmp_path) -> Step:
    return Step(request.param, make_clip, golden_index, golden_arrays, tmp_path)


def close(found: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def test_loss(step: Step) -> None:
    close(step.loss.detach(), step.expected["loss"], 1e-6)


def test_teacher_student_and_cosine(make_clip, golden_index, golden_arrays, tmp_path) -> None:
    step = Step("eva", make_clip, golden_index, golden_arrays, tmp_path)
    with torch.no_grad():
        dense = step.model.student(step.images, pooled=False).dense
        pooled = pool_boxes(dense, step.boxes, step.model.student.stride)
    close(step.embeddings, step.expected["teacher_embed"], 2e-5)
    close(pooled, step.expected["student_roi"], 1e-5)
    cosine = torch.nn.functional.cosine_similarity(pooled, step.embeddings)
    close(cosine, step.expected["cosine"], 1e-5)


def test_gradients(step: Step) -> None:
    found = step.gradients()
    names = [name.removeprefix("grad/") for name in step.expected if name.startswith("grad/")]
    assert names
    for name in names:
        close(found[name], step.expected[f"grad/{name}"], 1e-6)


def test_every_gradient_norm_and_the_parameters_without_gradient(
    make_clip, golden_index, golden_arrays, golden_dir, tmp_path
) -> None:
    step = Step("eva", make_clip, golden_index, golden_arrays, tmp_path)
    groups = json.loads((golden_dir / "eva_tiny_train_groups.json").read_text(encoding="utf-8"))
    found = step.gradients()
    with_gradient = [name for name, gradient in found.items() if gradient is not None]
    assert sorted(with_gradient) == sorted(groups["trainable_with_grad"])
    norms = torch.stack([found[name].norm() for name in groups["trainable_with_grad"]])
    torch.testing.assert_close(norms, step.expected["grad_norms"], rtol=1e-5, atol=1e-9)


def test_step_of_the_optimizer(make_clip, golden_index, golden_arrays, tmp_path) -> None:
    step = Step("eva", make_clip, golden_index, golden_arrays, tmp_path)
    groups = get_parameters(step.model, weight_decay_1d=0.0)
    before = {n: p.detach().clone() for n, p in step.model.student.tower.named_parameters()}
    torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1, betas=(0.9, 0.999)).step()

    after = dict(step.model.student.tower.named_parameters())
    released = to_eva_clip_keys({f"visual.{n}": p.detach() for n, p in after.items()})
    old = to_eva_clip_keys({f"visual.{n}": p for n, p in before.items()})
    gradients = step.gradients()
    prefix = "adamw_lr1e-2_wd0.1/"
    names = [n.removeprefix(prefix) for n in step.expected if n.startswith(prefix)]
    assert names
    for name in names:
        if gradients[name] is None:
            assert torch.equal(released[name], old[name])
            close(released[name], step.expected[prefix + name], 0)
            continue
        large = gradients[name].abs() > 1e-6
        close(released[name][large], step.expected[prefix + name][large], 1e-5)


def test_query_and_key_of_the_last_block_of_a_vit_get_zeros(
    make_clip, golden_index, golden_arrays, tmp_path
) -> None:
    step = Step("openai_vit", make_clip, golden_index, golden_arrays, tmp_path)
    last = step.model.student.tower.transformer.resblocks[-1].attn
    width = golden_index["openai_vit"]["width"]
    assert not last.in_proj_weight.grad[: 2 * width].any()
    assert last.in_proj_weight.grad[2 * width :].any()
