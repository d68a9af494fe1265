"""Reading checkpoints: formats, key maps, and everything that must be refused."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from densedet.clip.checkpoints import (
    TOKEN_IDS,
    TOKEN_ROWS,
    from_eva_clip_keys,
    read_state_dict,
    to_eva_clip_keys,
)
from densedet.clip.factory import create_clip, create_text_encoder, create_visual, load_checkpoint
from densedet.errors import CheckpointError
from densedet.weights import file_digest, load_strictly, weights_digest

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3, "name": "x", "optimizer": {"lr": 0.1}},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {**s, "input_resolution": torch.tensor(224), "context_length": 77},
    ],
)
def test_torch_files(tmp_path: Path, wrap: Callable[..., Any], legacy: bool) -> None:
    path = tmp_path / "x.pt"
    torch.save(wrap(STATE), path, _use_new_zipfile_serialization=not legacy)
    assert same(read_state_dict(path), STATE)


def test_safetensors(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "x.safetensors")
    assert same(read_state_dict(tmp_path / "x.safetensors"), STATE)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_archive(tmp_path: Path) -> None:
    module = torch.jit.script(nn.Linear(3, 2))
    module.save(str(tmp_path / "x.pt"))
    assert same(read_state_dict(tmp_path / "x.pt"), module.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({k: v.to(dtype) if k != "b" else v for k, v in STATE.items()}, tmp_path / "x.pt")
    found = read_state_dict(tmp_path / "x.pt")
    assert found["a.weight"].dtype == torch.float32 and found["b"].dtype == torch.int64
    assert same(found, STATE)


def test_eva_key_map_round_trip(make_clip: Any, tmp_path: Path) -> None:
    state = make_clip("eva").state_dict()
    released = to_eva_clip_keys(state)
    block = "visual.blocks.1"
    table = {
        f"{block}.attn.q_bias": f"{TIMM}.attn.q_proj.bias",
        f"{block}.attn.v_bias": f"{TIMM}.attn.v_proj.bias",
        f"{block}.attn.inner_attn_ln.weight": f"{TIMM}.attn.norm.weight",
        f"{block}.mlp.w1.weight": f"{TIMM}.mlp.fc1_g.weight",
        f"{block}.mlp.w2.bias": f"{TIMM}.mlp.fc1_x.bias",
        f"{block}.mlp.ffn_ln.bias": f"{TIMM}.mlp.norm.bias",
        f"{block}.mlp.w3.weight": f"{TIMM}.mlp.fc2.weight",
        f"{block}.attn.k_proj.weight": f"{TIMM}.attn.k_proj.weight",
        f"{block}.norm1.weight": f"{TIMM}.norm1.weight",
        "visual.patch_embed.proj.bias": "visual.trunk.patch_embed.proj.bias",
        "visual.cls_token": "visual.trunk.cls_token",
        "visual.norm.weight": "visual.trunk.norm.weight",
        "visual.head.bias": "visual.trunk.head.bias",
        "text.transformer.resblocks.0.mlp.c_fc.weight": (
            "text.transformer.resblocks.0.mlp.c_fc.weight"
        ),
        "logit_scale": "logit_scale",
    }
    for theirs, ours in table.items():
        assert released[theirs] is state[ours]
    assert len(released) == len(state)
    assert not any("trunk" in name or "fc1" in name for name in released)
    released["visual.rope.freqs_cos"] = torch.zeros(16, 64)
    released["visual.blocks.0.attn.rope.freqs_sin"] = torch.zeros(16, 64)
    torch.save(released, tmp_path / "eva.pt")
    assert same(read_state_dict(tmp_path / "eva.pt"), state)
    assert same(from_eva_clip_keys(released), state)


TIMM = "visual.trunk.blocks.1"


def test_every_parameter_of_the_released_architectures_is_mapped() -> None:
    with torch.device("meta"):
        state = create_clip("EVA02-B-16").state_dict()
    released = to_eva_clip_keys(state)
    assert len(released) == 410  # 436 entries of the released file, less 26 rotary tables
    assert "visual.blocks.11.attn.inner_attn_ln.bias" in released
    assert from_eva_clip_keys(released).keys() == state.keys()


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="absent.pt: no such checkpoint file"):
        read_state_dict(tmp_path / "absent.pt")
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        file_digest(tmp_path / "absent.pt")


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_that_runs_code_is_refused(tmp_path: Path, zipped: bool) -> None:
    marker, path = tmp_path / "marker", tmp_path / "evil.pt"
    content = {**STATE, "x": Payload(marker)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content["x"], protocol=2))
    with pytest.raises(CheckpointError, match=r"evil\.pt: .*(run code.*mkdir.*save plain tensors)"):
        read_state_dict(path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["x.pt", "legacy.pt", "x.safetensors"])
def test_truncated_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    state = {"a": torch.randn(100, 100)}
    if name.endswith(".safetensors"):
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name == "x.pt")
    content = path.read_bytes()
    for size in (0, 7, len(content) // 2, len(content) - 30):
        path.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match=f"{name}: truncated or not a checkpoint"):
            read_state_dict(path)


def test_text_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_text("this is an HTML page")
    with pytest.raises(CheckpointError, match="not a checkpoint") as caught:
        read_state_dict(tmp_path / "x.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize(
    "content, reason",
    [
        ([1, 2], "holds list"),
        ({}, "holds dict"),
        ({3: torch.ones(1)}, "holds dict"),
        ({"a": 3, "b": "x"}, "no tensors: a, b"),
    ],
)
def test_file_without_weights(tmp_path: Path, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=reason):
        read_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize("ids", [[0, 9], [0, -1], [0]], ids=str)
def test_token_rows_that_do_not_fit(tmp_path: Path, ids: list[int]) -> None:
    path = tmp_path / "x.safetensors"
    state = {TOKEN_ROWS: torch.ones(2, 4), TOKEN_IDS: torch.tensor(ids, dtype=torch.int32)}
    save_file(state, path, metadata={"vocab_size": "9"})
    with pytest.raises(CheckpointError, match=r"x\.safetensors: .* does not fit"):
        read_state_dict(path)


def test_what_does_not_fit_is_named_and_nothing_is_loaded() -> None:
    module = nn.Sequential(*(nn.Linear(3, 3) for _ in range(4)))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    state = {k: torch.zeros_like(v) for k, v in before.items() if not k.endswith("bias")}
    state |= {f"extra{i}": torch.zeros(1) for i in range(9)} | {"0.bias": torch.zeros(3)}
    state["3.weight"] = torch.zeros(5, 3)
    with pytest.raises(CheckpointError) as caught:
        load_strictly(module, state, source="file.pt")
    message = str(caught.value)
    assert message.startswith("file.pt: does not fit Sequential, nothing was loaded")
    assert "3 missing: 1.bias, 2.bias, 3.bias" in message
    assert "9 unexpected: extra0, extra1, extra2, extra3, ..." in message
    assert "1 of another shape: 3.weight (5, 3) for (3, 3)" in message
    assert same(module.state_dict(), before)


def test_scalar_and_single_element_fit_each_other() -> None:
    module = nn.Module()
    module.logit_scale = nn.Parameter(torch.zeros(()))
    load_strictly(module, {"logit_scale": torch.tensor([2.5])}, source="x")
    assert module.logit_scale.shape == () and module.logit_scale.item() == 2.5


@pytest.mark.parametrize("family, other", [("eva", "vit"), ("vit", "resnet"), ("resnet", "eva")])
def test_checkpoint_of_another_architecture(
    make_clip: Any, tmp_path: Path, family: str, other: str
) -> None:
    torch.save(make_clip(other).state_dict(), tmp_path / "other.pt")
    model = make_clip(family)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"other\.pt: does not fit .*missing.*unexpected"):
        load_checkpoint(model, tmp_path / "other.pt")
    assert same(model.state_dict(), before)


@pytest.mark.parametrize("custom_text", [True, False])
def test_text_tower_goes_where_the_model_has_it(
    make_clip: Any, tmp_path: Path, custom_text: bool
) -> None:
    model = make_clip("eva" if custom_text else "vit")
    state = {k: torch.randn(v.shape) for k, v in model.state_dict().items()}
    moved = {k.removeprefix("text."): v for k, v in state.items()}
    if not custom_text:
        kept = ("visual.", "logit_")
        moved = {k if k.startswith(kept) else f"text.{k}": v for k, v in state.items()}
    assert moved.keys() != state.keys()
    torch.save(moved, tmp_path / "x.pt")
    load_checkpoint(model, tmp_path / "x.pt")
    assert same(dict(model.state_dict()), state)


def test_towers_load_from_files_that_hold_only_them(tmp_path: Path) -> None:
    torch.manual_seed(1)
    visual, text = create_visual("densedet-tiny"), create_text_encoder("densedet-tiny")
    image_only = {f"visual.{k}": v for k, v in visual.tower.state_dict().items()}
    save_file(image_only, tmp_path / "v.safetensors")
    save_file(text.state_dict(), tmp_path / "t.safetensors")
    torch.manual_seed(2)
    again = create_visual("densedet-tiny", str(tmp_path / "v.safetensors"))
    assert same(again.state_dict(), visual.state_dict())
    again_text = create_text_encoder("densedet-tiny", str(tmp_path / "t.safetensors"))
    assert same(again_text.state_dict(), text.state_dict())
    with pytest.raises(CheckpointError, match="text tower.*missing: positional_embedding"):
        create_text_encoder("densedet-tiny", str(tmp_path / "v.safetensors"))
    with pytest.raises(CheckpointError, match="image tower.*missing"):
        create_visual("densedet-tiny", str(tmp_path / "t.safetensors"))


def test_weights_digest_depends_on_content_only() -> None:
    digest = weights_digest(STATE)
    assert weights_digest(dict(reversed(STATE.items()))) == digest
    assert weights_digest({k: v.clone() for k, v in STATE.items()}) == digest
    changed = STATE["a.weight"].clone()
    changed[1, 2] += 1e-6
    others = [
        {**STATE, "a.weight": changed},
        {**STATE, "a.weight": STATE["a.weight"].T},
        {**STATE, "a.weight": STATE["a.weight"].half()},
        {"a.weights": STATE["a.weight"], "b": STATE["b"]},
    ]
    assert len({digest, *map(weights_digest, others)}) == 5
    assert len(weights_digest({"x": torch.ones(2, dtype=torch.bfloat16)})) == 64
