"""Models as folders: written whole, given back to the bit, and refused where they are not safe."""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from densedet import model_zoo
from densedet.clip import create_clip
from densedet.clip.checkpoints import write_weights
from densedet.data.shapes_world_scenes import make_scene
from densedet.engine.checkpoint import Checkpointer
from densedet.engine.config import build, load_config
from densedet.errors import CheckpointError, ConfigError, OutputError
from densedet.predictor import Predictor
from densedet.saved_model import load_model, open_model, save_model
from densedet.vocabulary import Vocabulary
from densedet.weights import read_safetensors

FILES = ["README.md", "config.yaml", "model.safetensors", "vocabulary.json"]
DETECTOR = "projects/fvit/configs/quickstart.py"
WORDS = Vocabulary.parse("crimson star,red star;blue ring;a/b").with_unseen(["blue ring"])
WITH_STUFF = WORDS.with_stuff(Vocabulary.parse("grass,lawn;sky"))
# Config -> a vocabulary that its model can be given, None for that of its training alone.
MODELS = {
    DETECTOR: WORDS,
    "projects/clipself/configs/quickstart_detector.py": WORDS,
    "projects/panoptic_fpn/configs/quickstart.py": WITH_STUFF,
    "projects/panoptic_fpn/configs/quickstart_zero_shot.py": WITH_STUFF,
    "projects/denseclip/configs/quickstart.py": None,
    "projects/icpc/configs/quickstart.py": None,
    "projects/language_bridge/configs/quickstart.py": None,
}


def make(config):
    """A model with untrained heads, and its config; the CLIP of CLIPSelf is the shipped one."""
    cfg = load_config(config)
    if config == "projects/clipself/configs/quickstart_detector.py":
        cfg.model.backbone.bottom_up.bottom_up.visual.pretrained = "shipped"
    torch.manual_seed(3)
    return build(cfg.model, "model").eval(), cfg


def tensors(value):
    """Every tensor in the outputs of a model."""
    if isinstance(value, torch.Tensor):
        return [value]
    if hasattr(value, "get_fields"):
        value = value.get_fields()
    if hasattr(value, "tensor"):
        return [value.tensor]
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    return [t for item in value for t in tensors(item)] if isinstance(value, list | tuple) else []


def outputs(model):
    image = torch.as_tensor(make_scene(0, "val", 0).image.transpose(2, 0, 1).copy())
    with torch.no_grad():
        return tensors(model([{"image": image, "height": 160, "width": 160}]))


@pytest.fixture(scope="module")
def detector():
    return make(DETECTOR)


@pytest.fixture(scope="module")
def whole(detector, tmp_path_factory):
    """A folder that `save_model` wrote, for all tests: not to be changed."""
    model, cfg = detector
    return save_model(model, tmp_path_factory.mktemp("saved") / "model", cfg)


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of it to be spoilt."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def spoil(folder, change):
    """Change the config of a saved model."""
    content = OmegaConf.load(folder / "config.yaml")
    change(content)
    OmegaConf.save(content, folder / "config.yaml")


# ---------------------------------------------------------------------------------- there and back
@pytest.mark.parametrize("config", MODELS, ids=lambda name: name.split("/", 1)[1])
def test_outputs_are_equal_to_the_bit(config, tmp_path, monkeypatch):
    model, cfg = make(config)
    trained = model.vocabulary
    if MODELS[config] is not None:
        model.set_vocabulary(MODELS[config])
    expected = outputs(model)
    assert expected and any(t.numel() for t in expected)
    save_model(model, tmp_path / "saved", cfg)
    assert sorted(os.listdir(tmp_path)) == ["saved"]
    assert sorted(os.listdir(tmp_path / "saved")) == FILES
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    random = torch.random.get_rng_state()
    loaded = load_model(tmp_path / "saved")
    assert torch.equal(random, torch.random.get_rng_state())
    assert type(loaded) is type(model) and not loaded.training
    assert loaded.vocabulary == model.vocabulary
    found = outputs(loaded)
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    opened = open_model(tmp_path / "saved")
    assert opened.model.vocabulary == trained and opened.vocabulary == model.vocabulary


def test_every_weight_is_in_the_file(detector, whole):
    stored = read_safetensors(whole / "model.safetensors")[0]
    expected = detector[0].state_dict()
    assert stored.keys() == expected.keys()
    assert all(torch.equal(stored[name], value) for name, value in expected.items())


def test_the_folder_is_plain_data(whole):
    text = (whole / "config.yaml").read_text()
    assert "!!" not in text and "${" not in text and ".py" not in text
    content = OmegaConf.to_container(OmegaConf.load(whole / "config.yaml"))
    assert sorted(content) == ["augmentations", "densedet", "files", "format", "model"]
    digests = {
        name: hashlib.sha256((whole / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "vocabulary.json")
    }
    assert content["files"] == digests
    card = (whole / "README.md").read_text()
    assert card.startswith("---\nlicense: unknown\n") and all(d in card for d in digests.values())
    assert json.loads((whole / "vocabulary.json").read_text())["categories"][0]["label"]


def test_a_saved_model_is_saved_again(whole, tmp_path):
    again = save_model(open_model(whole), tmp_path / "again")
    for name in ("config.yaml", "model.safetensors", "vocabulary.json"):
        assert (again / name).read_bytes() == (whole / name).read_bytes(), name


def test_the_augmentations_and_a_vocabulary_of_a_file_are_kept(tmp_path):
    cfg = load_config(DETECTOR)
    WORDS.save(tmp_path / "words.json")
    cfg.model.vocabulary = {
        "_target_": "densedet.vocabulary.Vocabulary.from_file",
        "path": str(tmp_path / "words.json"),
    }
    cfg.dataloader.test.mapper.augmentations = [
        {"_target_": "densedet.data.ResizeToFit", "long": 90, "short": 80}
    ]
    save_model(build(cfg.model, "model"), tmp_path / "saved", cfg)
    (tmp_path / "words.json").unlink()
    opened = open_model(tmp_path / "saved")
    assert opened.model.vocabulary == WORDS
    image = make_scene(0, "val", 0).image
    (resize,) = opened.augmentations.augs
    assert resize.get_transform(image).apply_image(image).shape == (80, 80, 3)


def test_a_predictor_is_saved_with_its_words(tmp_path):
    predictor = Predictor("quickstart-zero-shot", device="cpu")
    predictor.set_vocabulary(WITH_STUFF)
    save_model(predictor, tmp_path / "saved")
    again = Predictor(tmp_path / "saved", device="cpu")
    assert again.vocabulary == predictor.vocabulary and again.trained == predictor.trained
    image = make_scene(0, "val", 0).image
    assert torch.equal(again.predict(image).semantic, predictor.predict(image).semantic)
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "| training | 70 categories, 70 of them seen: red star," in card
    assert "| vocabulary | 5 categories, 4 of them seen: crimson star, blue ring, a/b," in card


@pytest.fixture
def own_text(tmp_path):
    """A CLIP in a file, with a text tower that is not the shipped one."""
    clip = create_clip("densedet-tiny", "shipped")
    with torch.no_grad():
        clip.text_projection.add_(0.1 * torch.randn(clip.text_projection.shape))
    write_weights(tmp_path / "own.safetensors", clip.state_dict(), {})
    return tmp_path / "own.safetensors"


def test_a_text_tower_of_a_file_comes_with_the_model(own_text, tmp_path):
    cfg = load_config(DETECTOR, [f"clip.pretrained={own_text}"])
    model = build(cfg.model, "model").eval()
    model.set_vocabulary(WORDS)
    expected = outputs(model)
    save_model(model, tmp_path / "saved", cfg)
    own_text.unlink()
    assert sorted(os.listdir(tmp_path / "saved")) == sorted([*FILES, "text.safetensors"])
    moved = (tmp_path / "saved").rename(tmp_path / "moved")
    loaded = load_model(moved)
    assert all(torch.equal(a, b) for a, b in zip(outputs(loaded), expected, strict=True))
    again = save_model(open_model(moved), tmp_path / "again")
    first, second = (read_safetensors(path / "text.safetensors")[0] for path in (moved, again))
    assert first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


# ---------------------------------------------------------------------------------------- refused
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
        ("embedder.pretrained", "evil.pt"),
        ("embedder.cache_dir", "here"),
        ("roi_heads.box_head.path", "${oc.env:HOME}"),
    ],
)
def test_configs_that_reach_for_other_files_are_refused(folder, key, value):
    text = (folder / "config.yaml").read_text()
    content = OmegaConf.create(text)
    OmegaConf.update(content, f"model.{key}", value, force_add=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(content))
    with pytest.raises(ConfigError, match=r"config\.yaml\.model"):
        load_model(folder)


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


# ---------------------------------------------------------------------------------------- writing
def test_other_files_are_not_lost(detector, tmp_path):
    model, cfg = detector
    (tmp_path / "diary.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"holds 'diary\.txt'"):
        save_model(model, tmp_path, cfg)
    with pytest.raises(OutputError, match="is a file"):
        save_model(model, tmp_path / "diary.txt", cfg)
    assert (tmp_path / "diary.txt").read_text() == "dear"


def test_a_failure_leaves_what_was_there(detector, folder):
    model, cfg = detector
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    bad = cfg.copy()
    bad.model = cfg.model.copy()
    bad.model.roi_heads = cfg.model.roi_heads.copy()
    bad.model.roi_heads.box_head = {"_target_": "densedet.engine.config.load_config", "path": "x"}
    with pytest.raises(ConfigError, match=r"model\.roi_heads\.box_head"):
        save_model(model, folder, bad)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert os.listdir(folder.parent) == ["model"]
    save_model(model, folder, cfg)
    assert sorted(os.listdir(folder)) == FILES


def test_what_is_no_model_with_words_is_refused(detector, tmp_path):
    model, cfg = detector
    with pytest.raises(ConfigError, match="give the config"):
        save_model(model, tmp_path / "saved")
    with pytest.raises(ConfigError, match="Linear has no vocabulary"):
        save_model(torch.nn.Linear(1, 1), tmp_path / "saved", cfg)
    assert not (tmp_path / "saved").exists()


# --------------------------------------------------------------------------------- names and Hub
def test_unknown_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no folder 'absent' with a saved model"):
        load_model("absent")
    with pytest.raises(ConfigError, match="on the Hugging Face Hub it is hf-hub:some/model"):
        load_model("some/model")
    with pytest.raises(ConfigError, match="write hf-hub:owner/name"):
        load_model("hf-hub:../../name")


def test_a_clip_alone_is_not_a_model():
    with pytest.raises(ConfigError, match=r"create_clip\('EVA02-B-16', 'merged2b_s8b_b131k'\)"):
        open_model("eva02-b16")


def test_the_zoo_model_without_training(tmp_path):
    opened = open_model("quickstart-zero-shot")
    entry = model_zoo.get_model("quickstart-zero-shot")
    save_model(opened, tmp_path / "saved", about=entry)
    loaded = load_model(tmp_path / "saved")
    assert all(
        torch.equal(a, b) for a, b in zip(outputs(loaded), outputs(opened.model), strict=True)
    )
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "license: apache-2.0" in card and "| mIoU | 2.1 |" in card


@pytest.mark.parametrize("name", ["quickstart", "quickstart-panoptic"])
def test_the_zoo_models_of_make_demo(name, tmp_path, monkeypatch):
    """Their checkpoint is enough: the CLIP that was distilled on the way is in it."""
    entry = model_zoo.get_model(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_zoo.entries, "config_root", lambda: tmp_path / "checkout")
    with pytest.raises(CheckpointError, match="is not trained yet.*`make demo`"):
        open_model(name)
    cfg = load_config(entry.config)
    cfg.model.backbone.bottom_up.bottom_up.visual.pretrained = "shipped"
    torch.manual_seed(0)
    model = build(cfg.model, "model").eval()
    weights = tmp_path / entry.weights
    Checkpointer(model, str(weights.parent)).save(weights.stem)
    opened = open_model(name)
    assert all(
        torch.equal(a, b) for a, b in zip(outputs(opened.model), outputs(model), strict=True)
    )


class FakeHub(BaseHTTPRequestHandler):
    """One repository of one commit, as much of the Hub as a download asks for."""

    COMMIT = "c" * 40

    def __init__(self, folder, *args):
        self.folder = folder
        super().__init__(*args)

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        path = self.path.partition("?")[0]
        name = path.rpartition("/")[2]
        if path.startswith("/api/models/someone/stars/revision/"):
            names = [{"rfilename": file.name} for file in self.folder.iterdir()]
            answer = {"id": "someone/stars", "sha": self.COMMIT, "siblings": names}
            self.reply(json.dumps(answer).encode(), with_body, "application/json")
        elif path.startswith("/api/models/someone/stars/tree/"):
            tree = [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": digest(f)}
                for f in self.folder.iterdir()
            ]
            self.reply(json.dumps(tree).encode(), with_body, "application/json")
        elif path.startswith("/someone/stars/resolve/") and (self.folder / name).is_file():
            self.reply((self.folder / name).read_bytes(), with_body, "application/octet-stream")
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def reply(self, body, with_body, kind):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.COMMIT)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def digest(file):
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def hub(whole, tmp_path):
    """A server that has the saved model as someone/stars, and a pickle beside it."""
    served = Path(shutil.copytree(whole, tmp_path / "served"))
    (served / "pytorch_model.bin").write_bytes(b"a pickle")
    handler = functools.partial(FakeHub, served)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_model_of_the_hub(hub, tmp_path):
    """In a process of its own: the address of the Hub is read when its client is imported."""
    code = (
        "from pathlib import Path\n"
        "from densedet.errors import CheckpointError\n"
        "from densedet.saved_model import load_model\n"
        "model = load_model('hf-hub:someone/stars')\n"
        "print(type(model).__name__, len(model.vocabulary))\n"
        f"files = Path({str(tmp_path)!r}).glob('home/hub/models--*/snapshots/*/*')\n"
        "print(sorted(file.name for file in files))\n"
        "try:\n"
        "    load_model('hf-hub:someone/else')\n"
        "except CheckpointError as error:\n"
        "    print('refused', 'hf-hub:someone/else cannot be downloaded' in str(error))\n"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_CACHE": str(tmp_path / "home" / "hub"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines == ["OpenVocabularyRCNN 64", str(FILES), "refused True"]
