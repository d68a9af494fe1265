"""What is read must be a saved model, whole and harmless."""

import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from densedet.clip.checkpoints import write_weights
from densedet.errors import CheckpointError, ConfigError
from densedet.saved_model import load_model, save_model
from densedet.saved_model.plain import EMBEDDER, trusted
from densedet.weights import read_safetensors

FILES = ["README.md", "config.yaml", "model.safetensors", "vocabulary.json"]


def spoil(folder, change):
    """Change the config of a saved model."""
    content = OmegaConf.load(folder / "config.yaml")
    change(content)
    OmegaConf.save(content, folder / "config.yaml")


@pytest.mark.parametrize("name", FILES[1:])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"has no {name}"):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "vocabulary.json"])
@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data[:-1] + b"?"])
def test_a_changed_file_is_named(folder, name, change):
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(CheckpointError, match=rf"{name} has the sha256 [0-9a-f]{{64}}, not "):
        load_model(folder)


def test_the_sha256_that_is_asked_for(whole):
    digest = hashlib.sha256((whole / "model.safetensors").read_bytes()).hexdigest()
    assert load_model(whole, sha256=digest) is not None
    with pytest.raises(CheckpointError, match=f"does not have the sha256 {'0' * 64}"):
        load_model(whole, sha256="0" * 64)


def test_pickles_are_never_read(detector, folder, tmp_path):
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return Path.touch, (marker,)

    for name in ("model.safetensors", "pickle.pth"):
        torch.save({"model": Evil()}, tmp_path / name)
    shutil.copy(tmp_path / "model.safetensors", folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    spoil(folder, lambda content: content.files.update({"model.safetensors": digest}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated or not a checkpoint"):
        load_model(folder)
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(tmp_path / "pickle.pth", only)
    with pytest.raises(CheckpointError, match=r"pickle\.pth.*pickles are not read"):
        load_model(only)
    assert not marker.exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "builtins.exec",
        "torch.load",
        "torch.hub.load",
        "torch.nn.modules.module.warnings.os.system",
        "densedet.files.shutil.rmtree",
        "densedet.engine.config.load_config",
        "densedet.vocabulary.Vocabulary.from_file",
        "densedet.modeling.no_such_room.Thing",
        "densedet.modeling",
        "detectron2.config.LazyConfig.load",
        "detectron2.modeling.build_model",
        "detectron2.modeling.mmdet_wrapper.MMDetDetector",
        "detectron2.utils.env.setup_custom_environment",
        "torch.nn.modules.utils.repeat",
        "torch.nn.Module.load_state_dict",
        "torch.nn.Module.__class__",
        "torch.nn.Module.__init__.__globals__.get",
        "torch.nn.Linear.forward.__get__",
        7,
    ],
)
def test_callables_that_are_no_parts_of_models_are_refused(folder, target):
    def change(content):
        content.model.roi_heads.box_head = {"_target_": target, "args": "x"}

    spoil(folder, change)
    with pytest.raises(ConfigError, match=r"config\.yaml\.model\.roi_heads\.box_head"):
        load_model(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone.bottom_up.bottom_up.visual.pretrained", "../evil.pt"),
        ("backbone.bottom_up.bottom_up.visual.model", "~"),
        ("backbone.bottom_up.bottom_up.visual.pretrained", "evil.pt"),
        ("backbone.bottom_up.bottom_up.visual.pretrained", "evil"),
        ("backbone.bottom_up.bottom_up.visual.pretrained", "shipped"),
        ("embedder.pretrained", "evil.pt"),
        ("embedder.pretrained", "evil"),
        ("embedder.pretrained", "text.safetensors"),
        ("embedder.pretrained", 7),
        ("embedder.model", "local-dir:evil"),
        ("backbone.bottom_up.bottom_up.visual.model", "local-dir:evil"),
        ("embedder.cache_dir", "here"),
        ("roi_heads.box_head.path", "${oc.env:HOME}"),
    ],
)
def test_configs_that_reach_for_other_files_are_refused(folder, key, value, own_text, monkeypatch):
    monkeypatch.chdir(own_text.parent)
    for name in ("evil", "evil.pt", "text.safetensors"):  # they could be read
        shutil.copy(own_text, name)
    text = (folder / "config.yaml").read_text()
    content = OmegaConf.create(text)
    OmegaConf.update(content, f"model.{key}", value, force_add=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(content))
    with pytest.raises(ConfigError, match=rf"config\.yaml\.model\.{key.rpartition('.')[0]}"):
        load_model(folder)


def test_weights_of_timm_are_not_fetched(folder):
    """They are in the folder; True would download them, a name would read a file."""
    backbone = {"_target_": "densedet.modeling.backbone.TimmBackbone", "name": "resnet18"}
    for pretrained in (True, "evil"):
        spoil(folder, lambda c, p=pretrained: c.model.update(b={**backbone, "pretrained": p}))
        with pytest.raises(
            ConfigError, match=rf"model\.b\.pretrained: {pretrained!r} is not False"
        ):
            load_model(folder)


def test_a_tag_of_open_clip_is_no_file(folder, own_text, monkeypatch):
    """The words may be embedded by a released CLIP, by its tag alone."""
    embedder = {"_target_": EMBEDDER, "model": "ViT-B-16", "pretrained": "openai"}
    monkeypatch.chdir(own_text.parent)
    assert trusted(embedder, "here") == embedder
    own_text.rename("openai")
    with pytest.raises(ConfigError, match=r"here\.pretrained: 'openai'.*a file of that name"):
        trusted(embedder, "here")
    with pytest.raises(ConfigError, match="is not a tag of open_clip for 'RN50x999'"):
        trusted({**embedder, "model": "RN50x999"}, "here")


RELU = {"_target_": "torch.nn.ReLU"}
SHAPE = {"_target_": "detectron2.layers.ShapeSpec", "depth": 1}
NO_WORDS = {"_target_": "densedet.vocabulary.Vocabulary.from_dict", "data": 7}
NO_LIST = {"_target_": "densedet.vocabulary.Vocabulary.named", "name": "absent"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", None, r"model: NoneType is not a model with a vocabulary"),
        ("model", "x", r"model: str is not a model with a vocabulary"),
        ("model", {"a": 1}, r"model: dict is not a model with a vocabulary"),
        ("model", RELU, r"model: ReLU is not a model with a vocabulary"),
        ("augmentations", None, r"augmentations: NoneType is not a list of augmentations"),
        ("augmentations", "x", r"augmentations: str is not a list of augmentations"),
        ("augmentations", [RELU], r"augmentations\.0: ReLU is not an augmentation"),
        ("model.roi_heads", SHAPE, r"model\.roi_heads: TypeError: .*unexpected keyword.*'depth'"),
        ("model.pixel_mean", "x", r"model: \w+"),
        ("model.vocabulary", NO_WORDS, r"model\.vocabulary: \w+"),
        ("model.vocabulary", {"_target_": NO_WORDS["_target_"]}, r"model\.vocabulary: TypeError"),
        ("model.vocabulary", NO_LIST, r"model: .*absent"),
    ],
)
def test_a_malformed_config_is_one_line_with_its_place(folder, key, value, message):
    spoil(folder, lambda content: OmegaConf.update(content, key, value, merge=False))
    with pytest.raises(ConfigError, match=rf"{folder / 'config.yaml'}\.{message}") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_config_without_its_parts(folder):
    spoil(folder, lambda content: content.pop("model"))
    with pytest.raises(ConfigError, match=r"config\.yaml\.model: NoneType is not a model"):
        load_model(folder)


def test_an_interpolation_that_leads_nowhere_is_one_line(detector, tmp_path):
    model, cfg = detector
    cfg = cfg.copy()
    cfg.model = {**cfg.model, "pixel_mean": "${absent.key}"}
    with pytest.raises(ConfigError, match=r"^model: .*absent\.key") as caught:
        save_model(model, tmp_path / "saved", cfg)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!python/object/apply:os.system ['true']", "not plain YAML"),
        ("a: [", "not plain YAML"),
        ("- 1", "format 1"),
        ("format: 2", "format 1"),
        ("format: 1", "'files' must have"),
        ("format: 1\nfiles: {../x: a}", "'files' must have"),
    ],
)
def test_configs_of_another_kind_are_refused(folder, text, message):
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_model(folder)


def test_weights_of_another_model_are_refused(folder, own_text):
    shutil.copy(own_text, folder / "model.safetensors")
    digest = hashlib.sha256(own_text.read_bytes()).hexdigest()
    spoil(folder, lambda content: content.files.update({"model.safetensors": digest}))
    with pytest.raises(CheckpointError, match="does not fit OpenVocabularyRCNN"):
        load_model(folder)


def test_weights_of_another_dtype_are_refused(folder):
    """They would be converted, and the model be another."""
    state = read_safetensors(folder / "model.safetensors")[0]
    name = next(name for name, tensor in state.items() if tensor.is_floating_point())
    write_weights(folder / "model.safetensors", {**state, name: state[name].to(torch.int8)}, {})
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    spoil(folder, lambda content: content.files.update({"model.safetensors": digest}))
    message = (
        rf"model\.safetensors: {name} is torch\.int8, and OpenVocabularyRCNN has torch\.float32"
    )
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)
