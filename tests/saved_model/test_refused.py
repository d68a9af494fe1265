"""What is read must be a saved model, whole and harmless."""

import hashlib
import re
import resource
import shutil
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from densedet.clip.checkpoints import write_weights
from densedet.engine.config import load_config
from densedet.errors import CheckpointError, ConfigError, VocabularyError
from densedet.saved_model import load_model, save_model
from densedet.saved_model.folder import config_digest, is_config_of_saved_model, read_folder
from densedet.saved_model.plain import EMBEDDER, trusted, without_weights
from densedet.saved_model.reading import _check_fit, _needs_values, described_parts
from densedet.weights import read_safetensors

FILES = ["README.md", "config.yaml", "model.safetensors", "vocabulary.json"]


def spoil(folder, change):
    """Change the config of a saved model, as one who means harm does: its digest is right again."""
    content = OmegaConf.load(folder / "config.yaml")
    change(content)
    if "sha256" in content:
        content.sha256 = config_digest(OmegaConf.to_container(content, resolve=False))
    OmegaConf.save(content, folder / "config.yaml")


def replace_file(folder, name, data):
    """Replace a file of a saved model and its digest."""
    (folder / name).write_bytes(data)
    spoil(folder, lambda c: c.files.update({name: hashlib.sha256(data).hexdigest()}))


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
    spoil(folder, lambda c: OmegaConf.update(c, f"model.{key}", value, force_add=True))
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
        ("- 1", "format 2"),
        ("format: 3", "format 2"),
        ("format: 1\nfiles: {1: 2, a: 3}", "not plain YAML: the key 1 is not text"),
        ("format: 1\n1: 2", "not plain YAML: the key 1 is not text"),
        ("format: 1\nfiles: !!binary aGVsbG8=", "not plain YAML: b'hello' is not text"),
        ("format: 1\n!!binary aGVsbG8=: 1", "not plain YAML"),
        ("format: 1\nsha257: 2", "'sha257' is no part of a saved model"),
        ("format: 1\na: &b [1]\nc: *b", r"line 3 has the alias \*b"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", r"line 2 has the alias \*a"),
        ("format: 1\na: " + "[" * 200_000, "line 2 is nested more than 100 deep"),
        ("format: 1", "'files' must have"),
        ("format: 1\nfiles: {../x: a}", "'files' must have"),
    ],
)
def test_configs_of_another_kind_are_refused(folder, text, message):
    (folder / "config.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert not is_config_of_saved_model(folder / "config.yaml") or "files" in text


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
    write_weights(folder / "model.safetensors", {**state, name: state[name].half()}, {})
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    spoil(folder, lambda content: content.files.update({"model.safetensors": digest}))
    message = (
        rf"model\.safetensors: {name} is torch\.float16, and OpenVocabularyRCNN has torch\.float32"
    )
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


def test_a_digit_changed_in_the_config_is_seen(folder):
    path = folder / "config.yaml"
    text = path.read_text()
    changed = re.sub(r"(pixel_mean:\n\s*- \d+\.\d)\d", r"\g<1>9", text)
    assert changed != text
    path.write_text(changed)
    with pytest.raises(CheckpointError, match=r"config\.yaml was changed.*its line 'sha256' be"):
        load_model(folder)
    path.write_text("# a comment\n" + text)
    assert load_model(folder) is not None
    without = re.sub(r"(?m)^sha256: .*\n", "", changed)
    path.write_text(without)
    with pytest.raises(CheckpointError, match=r"config\.yaml was changed"):
        read_folder(folder)
    path.write_text(without.replace("format: 2", "format: 1"))  # as folders had none before
    assert read_folder(folder)["format"] == 1
    path.write_text(text.replace("sha256:", "sha257:"))
    with pytest.raises(ConfigError, match="'sha257' is no part of a saved model"):
        read_folder(folder)


@pytest.mark.parametrize("line", ["1: 2", "zz: {1: 2, a: 3}", "zz: !!binary aGVsbG8=", "zz: 2"])
def test_lines_added_to_the_config_are_refused_in_one_line(folder, line):
    with (folder / "config.yaml").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml") as caught:
        read_folder(folder)
    assert "\n" not in str(caught.value)


def test_a_config_cannot_switch_the_comparison_off_by_a_word_in_a_message(folder):
    def change(content):
        content.model.backbone.bottom_up.bottom_up.visual.model = "ViT-bigG-14"
        content.model.meta = 1

    spoil(folder, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ConfigError, match="unexpected keyword argument 'meta'"):
        load_model(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB


@pytest.mark.parametrize("call", [torch.Tensor.item, torch.Tensor.tolist, torch.Tensor.cpu])
def test_what_torch_says_of_meta_tensors_is_known(call):
    with pytest.raises(RuntimeError) as caught:
        call(torch.ones((), device="meta"))
    assert _needs_values(caught.value)
    assert not _needs_values(ValueError(f"a config says: {caught.value}"))


def test_a_config_of_a_huge_model_is_compared_before_anything_is_built(folder):
    """ViT-bigG has 7 GB of weights, the file 2 MB."""

    def change(content):
        content.model.backbone.bottom_up.bottom_up.visual.model = "ViT-bigG-14"

    spoil(folder, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match=r"model\.safetensors: does not fit OpenVocabularyR"):
        load_model(folder)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 500_000  # KiB


@pytest.mark.parametrize(
    "config",
    [
        "projects/fvit/configs/quickstart.py",
        "projects/panoptic_fpn/configs/quickstart.py",
        "projects/panoptic_fpn/configs/quickstart_zero_shot.py",
        "projects/denseclip/configs/quickstart.py",
        "projects/icpc/configs/quickstart.py",
        "projects/language_bridge/configs/quickstart.py",
    ],
)
def test_every_kind_of_model_is_compared_before_it_is_built(config):
    parts = without_weights(described_parts(load_config(config)))
    part = trusted(parts["model"], "model")
    with pytest.raises(CheckpointError, match=r"^file: does not fit .* missing"):
        _check_fit(part, "model", {}, "file")


def test_brackets_in_the_vocabulary_are_one_line(folder):
    replace_file(folder, "vocabulary.json", b"[" * 200_000)
    start = time.perf_counter()
    with pytest.raises(VocabularyError, match=r"vocabulary\.json.*cannot be decoded") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value) and time.perf_counter() - start < 5


def test_openais_spelling_becomes_the_architecture_of_its_weights():
    """The tag that tells QuickGELU from GELU is not saved, and a slash is refused as a path."""
    tower = {"_target_": "densedet.clip.factory.create_visual", "model": "ViT-B/16"}
    kept = without_weights({**tower, "pretrained": "openai"})
    assert kept == {**tower, "model": "ViT-B-16-quickgelu", "pretrained": None}
    embedder = {"_target_": EMBEDDER, "model": "ViT-B/16", "pretrained": "openai"}
    assert trusted(without_weights(embedder), "here")["model"] == "ViT-B-16-quickgelu"
