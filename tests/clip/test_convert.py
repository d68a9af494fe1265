"""Released formats to densedet's own and back: every key, dtype and value."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from densedet.clip import build_visual, create_clip, create_visual, read_state_dict
from densedet.clip.convert import read_clip, to_released, write_open_clip, write_released
from densedet.clip.position import rotary_table
from densedet.errors import CheckpointError, ConfigError

Arrays = Callable[[str], dict[str, Tensor]]
FAMILIES = {"eva": "eva", "openai_vit": "vit", "openai_rn": "resnet"}
# EVA-CLIP's files are all in half precision, OpenAI's keep norms and tables in fp32.
HALF = (".weight", ".bias", "_bias", "_weight", "proj")


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.half() if v.is_floating_point() else v for k, v in state.items()}


def mixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.half() if k.endswith(HALF) and v.ndim > 1 else v for k, v in state.items()}


@pytest.fixture(params=list(FAMILIES))
def golden_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def released(golden_name: str, golden_arrays: Arrays) -> dict[str, Tensor]:
    """A whole model in the published format: all keys of the released files, in fp32."""
    text = "text_eva_tiny_weights.npz" if golden_name == "eva" else "text_openai_tiny_weights.npz"
    return {**golden_arrays(text), **golden_arrays(f"{golden_name}_tiny_weights.npz")}


@pytest.fixture
def model(golden_name: str, golden_index: Any, named_clip: Any) -> str:
    return named_clip(FAMILIES[golden_name], golden_index[golden_name], golden_index["text"])


@pytest.mark.golden
@pytest.mark.parametrize("precision", ["as-stored", "fp32"])
@pytest.mark.parametrize("stored", [dict, half, mixed])
def test_released_to_ours_and_back(
    tmp_path: Path, released: dict[str, Tensor], model: str, stored: Any, precision: Any
) -> None:
    state = stored(released)
    torch.save(state, tmp_path / "in.pt")
    ours = tmp_path / "ours.safetensors"
    write_open_clip(ours, read_clip(tmp_path / "in.pt", model), precision)
    write_released(tmp_path / "out.pt", read_clip(ours, model), flat=True)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape, name
        tolerance = 1e-6 if "rope." in name else 0.0
        torch.testing.assert_close(found[name], tensor, rtol=0.0, atol=tolerance)


@pytest.mark.golden
def test_ours_loads_as_the_released_file_does(
    tmp_path: Path, released: dict[str, Tensor], model: str
) -> None:
    torch.save(half(released), tmp_path / "in.pt")
    write_open_clip(tmp_path / "x.safetensors", read_clip(tmp_path / "in.pt", model))
    dtypes = {t.dtype for t in load_file(tmp_path / "x.safetensors").values()}
    assert dtypes <= {torch.float16, torch.int32, torch.int64}
    direct = create_clip(model, str(tmp_path / "in.pt")).state_dict()
    assert_same(create_clip(model, str(tmp_path / "x.safetensors")).state_dict(), dict(direct))


@pytest.mark.golden
@pytest.mark.parametrize("golden_name", ["eva"], indirect=True)
def test_training_checkpoint_of_the_paper(
    tmp_path: Path, released: dict[str, Tensor], model: str
) -> None:
    extra = {"optimizer": {"state": {}, "param_groups": []}, "scaler": {"scale": 65536.0}}
    state = {f"module.{k}": v for k, v in released.items()}
    torch.save({"epoch": 6, "name": "run", "state_dict": state, **extra}, tmp_path / "in.pt")
    write_open_clip(tmp_path / "x.safetensors", read_clip(tmp_path / "in.pt", model))
    write_released(tmp_path / "out.pt", read_clip(tmp_path / "x.safetensors", model))
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert list(found) == ["epoch", "name", "state_dict"]
    assert (found["epoch"], found["name"]) == (6, "run")
    assert found["state_dict"].keys() == released.keys()


@pytest.mark.golden
@pytest.mark.parametrize("golden_name", ["openai_vit"], indirect=True)
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_torchscript_archive(tmp_path: Path, released: dict[str, Tensor], model: str) -> None:
    root = nn.Module()
    for name, tensor in mixed(released).items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module._modules[part]  # type: ignore[assignment]
        if tensor.is_floating_point():
            module.register_parameter(last, nn.Parameter(tensor))
        else:
            module.register_buffer(last, tensor)
    root.forward = lambda x: x  # type: ignore[assignment]
    torch.jit.trace(root, torch.zeros(1)).save(str(tmp_path / "in.pt"))
    write_open_clip(tmp_path / "x.safetensors", read_clip(tmp_path / "in.pt", model), "fp32")
    assert_same(to_released(read_clip(tmp_path / "x.safetensors", model)), mixed(released))


@pytest.mark.parametrize("precision", ["as-stored", "fp16"])
@pytest.mark.parametrize("family", ["eva", "vit", "resnet"])
def test_ours_to_released_and_back(
    tmp_path: Path, make_clip: Any, named_clip: Any, family: str, precision: Any
) -> None:
    name = named_clip(family)
    state = {k: v.half().float() for k, v in make_clip(family).state_dict().items()}
    counters = {k: v.long() for k, v in state.items() if k.endswith("num_batches_tracked")}
    save_file(state | counters, tmp_path / "ours.safetensors")
    weights = read_clip(tmp_path / "ours.safetensors", name)
    write_released(tmp_path / "x.pt", weights, precision)
    content = torch.load(tmp_path / "x.pt", weights_only=True)
    assert content["epoch"] == 0 and content["name"] == name
    dtype = torch.float16 if precision == "fp16" else torch.float32
    assert all(t.dtype in (dtype, torch.int64) for t in content["state_dict"].values())
    again = read_clip(tmp_path / "x.pt", name)
    write_open_clip(tmp_path / "again.safetensors", again, "fp32")
    assert_same(read_state_dict(tmp_path / "again.safetensors"), state | counters)


def test_eva_gets_all_rotary_tables(tmp_path: Path, make_clip: Any, named_clip: Any) -> None:
    name = named_clip("eva")
    save_file(make_clip("eva").state_dict(), tmp_path / "x.safetensors")
    released = to_released(read_clip(tmp_path / "x.safetensors", name))
    tables = {k: v for k, v in released.items() if "rope." in k}
    places = ["visual.rope", *(f"visual.blocks.{i}.attn.rope" for i in range(3))]
    assert set(tables) == {f"{p}.freqs_{kind}" for p in places for kind in ("cos", "sin")}
    sine, cosine = rotary_table((4, 4), 16, (16, 16))
    for key, table in tables.items():
        assert torch.equal(table, sine if key.endswith("sin") else cosine)


def test_numbers_of_the_published_architectures(tmp_path: Path) -> None:
    weights = read_clip_of_zeros("EVA02-B-16", tmp_path)
    released = to_released(weights)
    assert len(weights.state) == 410 and len(released) == 436
    assert released["visual.blocks.11.attn.rope.freqs_cos"].shape == (196, 64)


def read_clip_of_zeros(model: str, folder: Path) -> Any:
    """A file of the real architecture whose tensors are views of one zero each."""
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in create_clip(model).state_dict().items()}
    torch.save({k: torch.zeros(()).expand(shape) for k, shape in shapes.items()}, folder / "z.pt")
    return read_clip(folder / "z.pt", model)


@pytest.fixture
def distillation(tmp_path: Path, make_clip: Any) -> tuple[Path, dict[str, Tensor]]:
    """A training checkpoint, and the image tower of its student."""
    student, teacher = (build_visual(make_clip("eva", seed=seed)) for seed in (1, 2))
    model = nn.ModuleDict({"student": student, "teacher": teacher})
    optimizer = torch.optim.AdamW(student.parameters())
    content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "iteration": 9}
    torch.save(content, tmp_path / "model_final.pth")
    state = student.tower.state_dict()
    return tmp_path / "model_final.pth", {f"visual.{k}": v for k, v in state.items()}


def test_student_of_a_distillation(
    tmp_path: Path, distillation: Any, make_clip: Any, named_clip: Any
) -> None:
    name, (path, tower) = named_clip("eva"), distillation
    with pytest.raises(CheckpointError, match=r"model_final\.pth: holds no text tower.*text-from"):
        read_clip(path, name)
    whole = make_clip("eva", seed=3).state_dict()
    torch.save(half(dict(whole)), tmp_path / "text.pt")
    weights = read_clip(path, name, text_from=str(tmp_path / "text.pt"))
    rest = {k: v for k, v in half(dict(whole)).items() if not k.startswith("visual.")}
    assert_same(weights.state, rest | tower)
    write_open_clip(tmp_path / "v.safetensors", read_clip(path, name, visual_only=True))
    assert_same(load_file(tmp_path / "v.safetensors"), tower)
    assert create_visual(name, str(tmp_path / "v.safetensors")).depth == 3
    released = to_released(read_clip(path, name, visual_only=True))
    assert "visual.blocks.2.mlp.w3.bias" in released and "logit_scale" not in released
    assert_same(read_state_dict(path), tower)
    with pytest.raises(CheckpointError, match=r"tag: no such checkpoint file to take the text"):
        read_clip(path, name, text_from="tag")


def test_another_architecture_is_named(tmp_path: Path, make_clip: Any, named_clip: Any) -> None:
    name = named_clip("vit")
    torch.save(make_clip("eva").state_dict(), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt for small-vit: does not fit CLIP.*missing"):
        read_clip(tmp_path / "x.pt", name)
    with pytest.raises(CheckpointError, match=r"x\.pt for small-vit: does not fit Vision"):
        read_clip(tmp_path / "x.pt", name, visual_only=True)


@pytest.mark.parametrize("origin", ["[]", "{", '{"dtypes": {"a": "float17"}}', '{"no": 1}'])
def test_metadata_of_another_program(
    tmp_path: Path, make_clip: Any, named_clip: Any, origin: str
) -> None:
    state = make_clip("vit").state_dict()
    save_file(state, tmp_path / "x.safetensors", metadata={"origin": origin})
    with pytest.raises(CheckpointError, match=r"x\.safetensors: its metadata 'origin'"):
        read_clip(tmp_path / "x.safetensors", named_clip("vit"))


def test_suffix_decides_how_a_file_is_read(tmp_path: Path, make_clip: Any, named_clip: Any) -> None:
    save_file(make_clip("vit").state_dict(), tmp_path / "x.safetensors")
    weights = read_clip(tmp_path / "x.safetensors", named_clip("vit"))
    with pytest.raises(ConfigError, match=r"y\.pt: .*written to a \.safetensors file"):
        write_open_clip(tmp_path / "y.pt", weights)
    with pytest.raises(ConfigError, match=r"y\.safetensors: .*written to a \.pt file"):
        write_released(tmp_path / "y.safetensors", weights)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
