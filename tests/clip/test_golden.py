"""The towers against vectors of the published reference, through released-format checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densedet.clip import TextEncoder, build_text_encoder, build_visual, load_checkpoint
from densedet.clip.position import resample_positions, rotary_table
from densedet.clip.resnet import ResNetVisual
from densedet.clip.visual import ClipVisual
from densedet.clip.vit import VitVisual
from densedet.regions import box_masks, pool_boxes, pool_masks

pytestmark = [
    pytest.mark.golden,
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
]

Arrays = Callable[[str], dict[str, Tensor]]
FILES = {"eva": "eva_tiny", "openai_vit": "openai_vit_tiny", "openai_rn": "openai_rn_tiny"}
FAMILY = {"eva": "eva", "openai_vit": "vit", "openai_rn": "resnet"}
TEXTS = {"eva": "text_eva_tiny_weights.npz", "openai_vit": "text_openai_tiny_weights.npz"}
TEXTS["openai_rn"] = TEXTS["openai_vit"]


class Archive(nn.Module):
    """A module tree with given parameter names, to be scripted like OpenAI's released archives."""

    def forward(self, x: Tensor) -> Tensor:
        """Do nothing: only the state dict matters."""
        return x


def scripted(state: dict[str, Tensor]) -> torch.jit.ScriptModule:
    root = Archive()
    for name, tensor in state.items():
        *path, last = name.split(".")
        module: nn.Module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, Archive())
            module = module._modules[part]
        if tensor.is_floating_point():
            module.register_parameter(last, nn.Parameter(tensor))
        else:
            module.register_buffer(last, tensor)
    return torch.jit.script(root)


def half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.half() if v.is_floating_point() else v for k, v in state.items()}


@pytest.fixture(params=list(FILES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def clip_model(
    name: str, make_clip: Any, golden_index: Any, golden_arrays: Arrays, tmp_path: Path
) -> Any:
    """The reference's model, loaded from a file in the format in which such weights are
    released."""
    state = half({**golden_arrays(TEXTS[name]), **golden_arrays(f"{FILES[name]}_weights.npz")})
    path = tmp_path / "released.pt"
    if name == "eva":
        extra = {"epoch": 6, "name": "run", "optimizer": {"state": {}, "param_groups": []}}
        torch.save({**extra, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    elif name == "openai_vit":
        torch.jit.save(scripted(state), path)
    else:
        torch.save(state, path)
    model = make_clip(FAMILY[name], golden_index[name], golden_index["text"], seed=None)
    load_checkpoint(model, path)
    return model


@pytest.fixture
def visual(clip_model: Any) -> ClipVisual:
    return build_visual(clip_model)


@pytest.fixture
def expected(name: str, golden_arrays: Arrays) -> dict[str, Tensor]:
    return golden_arrays(f"{FILES[name]}_outputs.npz")


@pytest.fixture
def tags(name: str, golden_index: Any) -> list[str]:
    return [size["tag"] for size in golden_index[name]["sizes"]]


def difference(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return (found - expected).abs().max().item()


def per_image(regions: Tensor, image_index: Tensor, batch: int) -> list[Tensor]:
    assert torch.equal(image_index, image_index.sort(stable=True).values)
    return [regions[image_index == i] for i in range(batch)]


@torch.no_grad()
def test_image_embedding(visual: ClipVisual, expected: dict[str, Tensor], tags: list[str]) -> None:
    found = visual.embed_images(expected[f"{tags[0]}/images"])
    assert difference(found, expected["image_embed"]) < 2e-5


@torch.no_grad()
def test_dense_map_at_every_size(
    visual: ClipVisual, expected: dict[str, Tensor], tags: list[str]
) -> None:
    for tag in tags:
        found = visual(expected[f"{tag}/images"], pooled=False).dense
        assert difference(found, expected[f"{tag}/dense"]) < 1e-5, tag


@torch.no_grad()
def test_taps_at_every_size(
    visual: ClipVisual, expected: dict[str, Tensor], tags: list[str], name: str
) -> None:
    for tag in tags:
        taps = visual(expected[f"{tag}/images"], taps=visual.tap_names, pooled=False).taps
        assert list(taps) == list(visual.tap_names)
        for tap, found in taps.items():
            reference = expected[f"{tag}/{tap}"]
            if name != "openai_rn":  # tokens, CLS first
                reference = reference[:, 1:].transpose(1, 2).reshape(found.shape)
            assert difference(found, reference) < (1e-5 if tap == "stem" else 5e-5), (tag, tap)


@pytest.mark.parametrize("name", ["eva", "openai_vit"], indirect=True)
@torch.no_grad()
def test_tokens_that_enter_the_blocks(
    visual: ClipVisual, expected: dict[str, Tensor], tags: list[str]
) -> None:
    for tag in tags:
        found = visual.embed_tokens(expected[f"{tag}/images"])
        assert difference(found, expected[f"{tag}/block_in"]) < 1e-5, tag


@torch.no_grad()
def test_region_features(visual: ClipVisual, expected: dict[str, Tensor], tags: list[str]) -> None:
    key = "roi" if f"{tags[0]}/roi" in expected else "roi_v2"
    for tag in tags:
        images = expected[f"{tag}/images"]
        dense = visual(images, pooled=False).dense
        height, width = images.shape[2:]
        boxes = expected[f"{tag}/boxes"] * torch.tensor([width, height, width, height])
        boxes = per_image(boxes, expected[f"{tag}/boxes_image_index"], len(images))
        found = pool_boxes(dense, boxes, visual.stride)
        assert difference(found, expected[f"{tag}/{key}"]) < 1e-5, tag
        masks = per_image(
            expected[f"{tag}/masks"], expected[f"{tag}/masks_image_index"], len(images)
        )
        assert difference(pool_masks(dense, masks), expected[f"{tag}/mask_pooled"]) < 1e-5, tag


@pytest.mark.parametrize("name", ["openai_vit"], indirect=True)
@torch.no_grad()
def test_attended_regions_of_vit(
    visual: VitVisual, expected: dict[str, Tensor], tags: list[str]
) -> None:
    for tag in tags:
        images = expected[f"{tag}/images"]
        grid = (images.shape[2] // visual.stride, images.shape[3] // visual.stride)
        cells = expected[f"{tag}/boxes"] * torch.tensor([grid[1], grid[0], grid[1], grid[0]])
        boxes = per_image(cells, expected[f"{tag}/boxes_image_index"], len(images))
        found = visual.attend_masks(images, [box_masks(b, grid, 1.0) for b in boxes])
        assert difference(found, expected[f"{tag}/roi_v1"]) < 2e-5, tag
        masks = per_image(
            expected[f"{tag}/masks"], expected[f"{tag}/masks_image_index"], len(images)
        )
        found = visual.attend_masks(images, masks)
        assert difference(found, expected[f"{tag}/mask_attn_pooled"]) < 2e-5, tag


@pytest.mark.parametrize("name", ["openai_rn"], indirect=True)
@torch.no_grad()
def test_attended_regions_of_resnet(
    visual: ResNetVisual, expected: dict[str, Tensor], tags: list[str]
) -> None:
    for tag in tags:
        images = expected[f"{tag}/images"]
        height, width = images.shape[2:]
        boxes = expected[f"{tag}/boxes"] * torch.tensor([width, height, width, height])
        boxes = per_image(boxes, expected[f"{tag}/boxes_image_index"], len(images))
        found = visual.attend_boxes(images, boxes)
        assert difference(found, expected[f"{tag}/roi_v1"]) < 2e-5, tag


def test_eva_position_and_rotary_tables(golden_index: Any, golden_arrays: Arrays) -> None:
    config = golden_index["eva"]
    table = golden_arrays("eva_tiny_weights.npz")["visual.pos_embed"]
    expected = golden_arrays("eva_tiny_outputs.npz")
    side = config["pt_hw_seq_len"]
    for size in config["sizes"]:
        tag, grid = size["tag"], tuple(size["grid"])
        assert difference(resample_positions(table, grid), expected[f"{tag}/pos_embed"]) < 1e-6
        sine, cosine = rotary_table(grid, config["head_dim"], (side, side))
        assert difference(sine, expected[f"{tag}/rope_sin"]) < 1e-6
        assert difference(cosine, expected[f"{tag}/rope_cos"]) < 1e-6


@pytest.fixture
def encoder(clip_model: Any) -> TextEncoder:
    return build_text_encoder(clip_model)


@pytest.fixture
def prompts(golden_dir: Path) -> dict[str, Any]:
    return json.loads((golden_dir / "text_prompts.json").read_text(encoding="utf-8"))


@pytest.fixture
def texts(prompts: dict[str, Any]) -> list[str]:
    rendered = [text for name in prompts["names"] for text in prompts["prompts"][name]]
    return rendered + prompts["extra_texts"]


@pytest.mark.parametrize("name", ["eva", "openai_vit"], indirect=True)
@torch.no_grad()
def test_text_embeddings(
    encoder: TextEncoder, name: str, texts: list[str], golden_arrays: Arrays
) -> None:
    expected = golden_arrays("text_tiny_outputs.npz")
    assert torch.equal(encoder.tokenize(texts), expected["tokens"].long())
    key = name.removesuffix("_vit")
    assert difference(encoder.encode(texts), expected[f"{key}/embeddings"]) < 2e-5


@pytest.mark.parametrize("name", ["eva", "openai_vit"], indirect=True)
def test_class_embeddings(
    encoder: TextEncoder, name: str, prompts: dict[str, Any], golden_arrays: Arrays
) -> None:
    expected = golden_arrays("text_tiny_outputs.npz")[
        f"{name.removesuffix('_vit')}/class_embeddings"
    ]
    assert difference(encoder.embed_names(prompts["names"], "clipself63"), expected) < 1e-5
