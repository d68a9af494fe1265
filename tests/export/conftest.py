"""Small models of every kind that is exported, with the shipped tiny CLIP or random weights."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from open_clip.timm_model import TimmModel
from timm.models.eva import Eva
from torch import Tensor, nn

from densedet import compat
from densedet.clip import (
    ClassEmbeddings,
    ClipVisual,
    VocabularyEmbedder,
    build_visual,
    create_visual,
)
from densedet.clip.eva import EvaVisual
from densedet.clip.tiny import build_tiny_clip
from densedet.engine.config import build, load_config
from densedet.export import ExportPart, make_dense_part
from densedet.modeling.roi_heads import ScoreEnsemble
from densedet.vocabulary import Vocabulary

WORDS = Vocabulary.parse("red star,crimson star;blue ring;green ball")
CONFIGS = {
    "zero_shot": "projects/panoptic_fpn/configs/quickstart_zero_shot.py",
    "denseclip": "projects/denseclip/configs/quickstart.py",
    "icpc": "projects/icpc/configs/quickstart.py",
    "detector": "projects/fvit/configs/quickstart.py",
    "panoptic": "projects/panoptic_fpn/configs/quickstart.py",
}
RESNET = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
}


def _eva() -> EvaVisual:
    """Two blocks with rotary positions, patches of 8 pixels."""
    with torch.device("meta"):
        tower = TimmModel("eva02_base_patch16_clip_224", 24, image_size=32, pool="token", proj=None)
    tower.trunk = Eva(
        img_size=32,
        patch_size=8,
        num_classes=24,
        global_pool="token",
        embed_dim=32,
        depth=2,
        num_heads=2,
        qkv_fused=False,
        swiglu_mlp=True,
        scale_mlp=True,
        scale_attn_inner=True,
        use_rot_pos_emb=True,
        ref_feat_shape=(16, 16),
    )
    tower.image_mean, tower.image_std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
    return EvaVisual(tower)


@pytest.fixture(scope="session")
def words() -> Vocabulary:
    """Three things; the first has two names."""
    return WORDS


@pytest.fixture(scope="session")
def make_model() -> Callable[..., nn.Module]:
    """``make_model(kind, *overrides)``: the model of a quickstart config, heads untrained."""

    def make(kind: str, *overrides: str) -> nn.Module:
        compat.apply()
        torch.manual_seed(0)
        model: nn.Module = build(load_config(CONFIGS[kind], overrides).model, "model")
        return model.eval()

    return make


@pytest.fixture(scope="session")
def make_detector(make_model: Any) -> Callable[..., nn.Module]:
    """``make_detector(ensemble=False, proposals=60)``: the quickstart detector on ``words``."""

    def make(ensemble: bool = False, proposals: int = 60) -> nn.Module:
        model = make_model(
            "detector",
            "model.backbone.bottom_up.bottom_up.dense=True",
            f"model.proposal_generator.post_nms_topk=[100,{proposals}]",
        )
        if ensemble:
            model.roi_heads.box_predictor.ensemble = ScoreEnsemble(0.1, 0.8, 75.0)
        model.set_vocabulary(WORDS.with_unseen(["blue ring"]))
        return model

    return make


@pytest.fixture(scope="session")
def make_visual() -> Callable[[str], tuple[ClipVisual, ClassEmbeddings]]:
    """``make_visual("vit" | "resnet" | "eva")``: a tower, and embeddings of ``words`` for it."""

    def make(kind: str) -> tuple[ClipVisual, ClassEmbeddings]:
        if kind == "vit":
            embedder = VocabularyEmbedder("densedet-tiny", "shipped", templates="single")
            return create_visual("densedet-tiny", "shipped"), embedder(WORDS)
        torch.manual_seed(0)
        visual = _eva() if kind == "eva" else build_visual(build_tiny_clip(RESNET))
        visual.eval()
        for name, weight in visual.named_parameters():
            if name.endswith("bn3.weight"):  # open_clip starts them at zero
                nn.init.ones_(weight)
        vectors = nn.functional.normalize(torch.randn(4, 24), dim=1)
        return visual, ClassEmbeddings(vectors, torch.tensor(WORDS.groups), torch.zeros(24))

    return make


@pytest.fixture(scope="session")
def make_dense(make_visual: Any) -> Callable[[str], ExportPart]:
    """``make_dense("vit" | "resnet" | "eva")``: the dense part of a tower."""

    def make(kind: str) -> ExportPart:
        return make_dense_part(*make_visual(kind), WORDS)

    return make


@pytest.fixture(scope="session")
def pictures() -> Callable[..., Tensor]:
    """``pictures(batch, height, width, seed=0)``: [B, 3, H, W] float RGB in 0..255."""

    def make(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        shape = (batch, 3, height, width)
        return torch.randint(0, 256, shape, generator=generator).float()

    return make
