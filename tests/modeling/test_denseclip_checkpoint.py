"""Released DenseCLIP checkpoints as files: there and back, and those that must be refused."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import instantiate
from torch import Tensor, nn

from densedet import model_zoo
from densedet.clip import create_clip
from densedet.errors import CheckpointError, ConfigError, DensedetError
from densedet.modeling.denseclip_checkpoint import (
    convert_released,
    guided_vocabulary,
    read_released,
    to_released,
    write_released,
)
from densedet.vocabulary import Vocabulary


def empty_model(config: str) -> nn.Module:
    """A model of densedet-tiny on the meta device: names and shapes alone."""
    cfg = model_zoo.get_config(f"projects/denseclip/configs/{config}.py")
    cfg.clip.pretrained = None
    with torch.device("meta"):
        return instantiate(cfg.model)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """DenseCLIP of 70 categories."""
    return empty_model("quickstart")


def values(model: nn.Module) -> dict[str, Tensor]:
    """Weights that differ from each other in shape and number."""
    state = model.state_dict()
    return {k: torch.full(v.shape, i, dtype=v.dtype) for i, (k, v) in enumerate(state.items())}


@pytest.fixture(scope="module")
def released(model: nn.Module) -> dict[str, Tensor]:
    return to_released(values(model))


def test_a_file_there_and_back(model: nn.Module, tmp_path: Path) -> None:
    path, vocabulary = tmp_path / "released.pth", guided_vocabulary(model)
    write_released(path, values(model), vocabulary, "these")
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"meta", "state_dict"}
    assert content["meta"]["CLASSES"] == vocabulary.labels
    assert read_released(path).classes == vocabulary.labels
    found = convert_released(path, model)
    for name, tensor in values(model).items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_written_with_the_names_that_are_prompted(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_dict({"categories": [{"label": "A", "synonyms": ["cat", "cats"]}]})
    state = {"sem_seg_head.predictor.bias": torch.zeros(1)}
    write_released(tmp_path / "x.pth", state, vocabulary, "these")
    assert read_released(tmp_path / "x.pth").classes == ("cat",)
    with pytest.raises(ConfigError, match=r"written to a \.pth file"):
        write_released(tmp_path / "x.safetensors", state, vocabulary, "these")


def test_what_mmcv_writes_beside_the_weights(released: Any, model: Any, tmp_path: Path) -> None:
    path, labels = tmp_path / "in.pth", guided_vocabulary(model).labels
    meta = {"env_info": "", "iter": 80000, "PALETTE": [[0, 0, 0]], "hook_msgs": {"last": "x"}}
    names = tuple(label.upper() + " " for label in labels)  # as the tokenizer does not mind
    optimizer = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": []}
    content = {"meta": {**meta, "CLASSES": names}, "optimizer": optimizer, "state_dict": released}
    torch.save(content, path)
    assert len(convert_released(path, model)) == len(released)
    torch.save(released, path)  # published without the rest
    assert len(convert_released(path, model)) == len(released)


def missing(_: Path, __: dict[str, Tensor]) -> None:
    """Leave the folder empty."""


def evil(path: Path, _: dict[str, Tensor]) -> None:
    class Payload:
        def __reduce__(self) -> object:
            return os.mkdir, (str(path.parent / "marker"),)

    path.write_bytes(pickle.dumps({"state_dict": Payload()}, protocol=2))


def truncated(path: Path, _: dict[str, Tensor]) -> None:
    torch.save({"state_dict": {"gamma": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:2000])


def saves(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path, dict[str, Tensor]], None]:
    return lambda path, state: torch.save(change(state), path)


def clip_itself(_: Any) -> dict[str, Tensor]:
    return create_clip("densedet-tiny").state_dict()


def baseline(state: dict[str, Tensor]) -> Any:
    guidance = ("gamma", "contexts", "text_encoder.", "context_decoder.")
    return {"state_dict": {k: v for k, v in state.items() if not k.startswith(guidance)}}


def fewer_classes(state: dict[str, Tensor]) -> Any:
    changed = {k: v[:3] if "conv_seg" in k else v for k, v in state.items()}
    lateral = "neck.lateral_convs.1.conv.weight"
    changed[lateral] = changed[lateral][:, :-67]
    return {"meta": {"CLASSES": ("cat", "dog", "sky")}, "state_dict": changed}


def another_order(state: dict[str, Tensor]) -> Any:
    labels = list(Vocabulary.named("shapes_world").labels)
    return {"meta": {"CLASSES": [*labels[:5], labels[6], labels[5]]}, "state_dict": state}


def another_tower(state: dict[str, Tensor]) -> Any:
    key = "backbone.positional_embedding"
    return {"state_dict": {**state, key: state[key][:50], "backbone.layer1.0.bn1.bias": state[key]}}


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (missing, "no such checkpoint file; check the path"),
        (evil, "reading it would run code"),
        (truncated, "truncated or not a checkpoint"),
        (saves(clip_itself), r"CLIP itself \(convert it with --model\), not a checkpoint of Dense"),
        (saves(baseline), "neither text tower nor context decoder, like a CLIP-only baseline"),
        (
            saves(fewer_classes),
            r"for 3 classes \(cat, dog, sky\), the config's vocabulary has 70 \(.*\); give the",
        ),
        (
            saves(another_order),
            "its class 5 is '.*', that of the config's vocabulary is '.*'; give",
        ),
        (
            saves(another_tower),
            r"1 unexpected: \S+layer1.0.bn1.bias; 1 of another shape: \S+positional_embedding \(50",
        ),
        (saves(lambda state: {"state_dict": {"gamma": 1.0}}), "with no tensors under gamma, not a"),
        (saves(lambda state: {"model": state}), "with no tensors under model, not a checkpoint"),
        (saves(lambda state: [state["gamma"]]), "a file without named weights, not a checkpoint"),
        (saves(lambda state: {"gamma": state["gamma"]}), "a file with entries such as gamma, not"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_files_that_do_not_fit_are_refused(
    model: nn.Module,
    released: dict[str, Tensor],
    tmp_path: Path,
    prepare: Callable[[Path, dict[str, Tensor]], None],
    message: str,
) -> None:
    path = tmp_path / "in.pth"
    prepare(path, released)
    with pytest.raises(CheckpointError, match=rf"in\.pth: .*{message}") as error:
        convert_released(path, model)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "marker").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_an_archive_of_clip_is_refused(model: nn.Module, tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "RN50.pt")
    with pytest.raises(CheckpointError, match="RN50.pt: a TorchScript archive, as OpenAI releases"):
        convert_released(tmp_path / "RN50.pt", model)


def test_a_model_without_guidance_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DensedetError, match="the config's Segmentor has no guidance: take the con"):
        convert_released(tmp_path / "in.pth", empty_model("quickstart_clip"))
