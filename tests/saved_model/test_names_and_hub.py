"""Names of models: of the zoo, of folders, of the Hub."""

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

from densedet import model_zoo
from densedet.engine.checkpoint import Checkpointer
from densedet.engine.config import build, load_config
from densedet.errors import CheckpointError, ConfigError
from densedet.saved_model import is_saved_model, load_model, open_model, save_model

FILES = ["README.md", "config.yaml", "model.safetensors", "vocabulary.json"]


def test_unknown_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no folder 'absent' with a saved model"):
        load_model("absent")
    with pytest.raises(ConfigError, match="on the Hugging Face Hub it is hf-hub:some/model"):
        load_model("some/model")
    with pytest.raises(ConfigError, match="write hf-hub:owner/name"):
        load_model("hf-hub:../../name")


def test_files_are_not_folders(folder, monkeypatch):
    (folder / "model_final.pth").write_bytes(b"")
    for name in ("model_final.pth", "config.yaml"):
        message = rf"{name} is a file: give the folder of a saved model.*pickles\) are not read"
        with pytest.raises(ConfigError, match=message):
            load_model(folder / name)
    monkeypatch.chdir(folder)
    assert not is_saved_model("") and is_saved_model(".")
    with pytest.raises(ConfigError, match="no folder '' with a saved model"):
        load_model("")


def test_a_clip_alone_is_not_a_model():
    with pytest.raises(ConfigError, match=r"create_clip\('EVA02-B-16', 'merged2b_s8b_b131k'\)"):
        open_model("eva02-b16")


def test_the_zoo_model_without_training(outputs, tmp_path):
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
def test_the_zoo_models_of_make_demo(outputs, name, tmp_path, monkeypatch):
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
