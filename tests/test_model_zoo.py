"""Configs and models are found by name, and a wheel carries all configs."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from densedet import model_zoo
from densedet.errors import CheckpointError, ConfigError, InstallationError
from densedet.model_zoo import configs, entries

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one shared part and one project config that imports it."""
    package = tmp_path / "densedet" / "model_zoo"
    (tmp_path / "setup.py").write_text("")
    (tmp_path / "configs" / "common").mkdir(parents=True)
    (tmp_path / "projects" / "fvit" / "configs").mkdir(parents=True)
    (tmp_path / "configs" / "common" / "train.py").write_text("train = dict(max_iter=7)\n")
    (tmp_path / "configs" / "common" / "__init__.py").write_text("")
    (tmp_path / "projects" / "fvit" / "configs" / "quickstart.py").write_text(
        "from ....configs.common.train import train\n\ntrain.seed = 3\n"
    )
    monkeypatch.setattr(configs, "_PACKAGE", package)
    return tmp_path


def test_names(zoo):
    assert model_zoo.list() == ["projects/fvit/configs/quickstart.py"]


@pytest.mark.parametrize(
    "name",
    [
        "projects/fvit/configs/quickstart.py",
        "projects/fvit/configs/quickstart",
        "configs/common/train.py",
        "configs/common/train",
    ],
)
def test_path(zoo, name):
    assert model_zoo.get_config_path(name) == zoo / (name.removesuffix(".py") + ".py")


@pytest.mark.parametrize("where", ["checkout", "wheel"])
def test_relative_imports_mean_the_same_file(zoo, where):
    pytest.importorskip("detectron2")
    if where == "wheel":
        files = zoo / "densedet" / "model_zoo" / "files"
        files.mkdir(parents=True)
        shutil.move(zoo / "configs", files)
        shutil.move(zoo / "projects", files)
        assert model_zoo.config_root() == files
    cfg = model_zoo.get_config("projects/fvit/configs/quickstart.py")
    assert (cfg.train.max_iter, cfg.train.seed) == (7, 3)


def test_unknown_name_gives_close_matches(zoo):
    with pytest.raises(ConfigError, match=r"did you mean projects/fvit/configs/quickstart\.py\?"):
        model_zoo.get_config("projects/fvit/configs/quikstart.py")


@pytest.mark.parametrize("name", ["zzz", "", "../secret.py", "/etc/passwd"])
def test_nothing_outside_is_found(zoo, name):
    (zoo.parent / "secret.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="no config"):
        model_zoo.get_config_path(name)


def test_no_configs_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(configs, "_PACKAGE", tmp_path / "densedet" / "model_zoo")
    with pytest.raises(InstallationError, match="no configs"):
        model_zoo.list()


def test_without_detectron2_the_remedy_is_named(zoo, monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2.config", None)
    with pytest.raises(InstallationError, match=r"tools/install_detectron2\.py"):
        model_zoo.get_config("configs/common/train.py")


# ------------------------------------------------------------------------------ the real wheel
@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this checkout, built from a copy so that no build files are left in it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    kept = shutil.ignore_patterns("__pycache__", "*.egg-info", "golden")
    for name in ("densedet", "configs", "projects"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=kept)
    for name in ("setup.py", "pyproject.toml", "constraints.txt", "LICENSE", "NOTICE", "README.md"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    environment = {**os.environ, "PIP_NO_INDEX": "1"}
    subprocess.run([*command, "-w", str(folder), str(source)], check=True, env=environment)
    return next(folder.glob("densedet-*.whl"))


def _expected_files() -> list[str]:
    """What a wheel of this checkout must hold, said independently of setup.py."""
    expected = ["densedet/model_zoo/files/constraints.txt", "densedet/py.typed"]
    for path in (ROOT / "densedet").rglob("*"):
        resource = path.parent.name == "resources" and path.suffix in (".json", ".safetensors")
        if path.is_file() and (path.suffix == ".py" or resource):
            expected.append(path.relative_to(ROOT).as_posix())
    for path in [*(ROOT / "configs").rglob("*.py"), *(ROOT / "projects").glob("*/configs/*.py")]:
        expected.append(f"densedet/model_zoo/files/{path.relative_to(ROOT).as_posix()}")
    return expected


def test_wheel_holds_code_resources_and_configs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert sorted(set(_expected_files()) - names) == []
        assert not [name for name in names if name.split("/")[0] in ("tests", "tools", "configs")]
        info = next(name for name in names if name.endswith(".dist-info/METADATA"))
        entry = archive.read(info.replace("METADATA", "entry_points.txt")).decode()
        metadata = archive.read(info).decode()
    assert "densedet = densedet.cli:main" in entry
    assert "detectron2" not in [
        line.split()[1] for line in metadata.splitlines() if line.startswith("Requires-Dist")
    ]


def test_unpacked_wheel_works_elsewhere(wheel, tmp_path):
    """Class lists and every config are found from the wheel alone, in another working folder."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    code = (
        "import densedet\n"
        "from densedet import model_zoo\n"
        "from densedet.vocabulary import Vocabulary\n"
        "print(densedet.__file__)\n"
        "print(len(Vocabulary.named('coco')))\n"
        "print(model_zoo.config_root())\n"
        "for name in model_zoo.list():\n"
        "    assert model_zoo.get_config_path(name).is_file()\n"
        "    print(name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    assert done.returncode == 0, done.stderr
    package, classes, root, *found = done.stdout.splitlines()
    assert Path(package).parent == site / "densedet"
    assert int(classes) == 80
    assert Path(root) == site / "densedet" / "model_zoo" / "files"
    assert found == sorted(
        path.relative_to(ROOT).as_posix() for path in ROOT.glob("projects/*/configs/*.py")
    )


def test_configs_of_the_checkout_load():
    """Each config of this checkout loads through the model zoo."""
    pytest.importorskip("detectron2")
    assert model_zoo.list(), "no project configs"
    for name in model_zoo.list():
        assert len(model_zoo.get_config(name)) > 0, name


# ---------------------------------------------------------------------- models with a short name
def test_every_model_has_a_config_and_a_licence():
    names = model_zoo.list_models()
    assert len(set(names)) == len(names)
    for name in names:
        entry = model_zoo.get_model(name)
        assert entry.name == name and entry.what and entry.licence and entry.source
        assert entry.config is None or model_zoo.get_config_path(entry.config).is_file()
        assert entry.config is not None or entry.weights is None
        assert bool(entry.metrics) == bool(entry.command)
        assert entry.url is None or entry.sha256 in entry.url


@pytest.mark.parametrize("name", model_zoo.list_models())
def test_what_is_said_of_clip_weights_is_what_open_clip_has(name):
    import open_clip

    entry = model_zoo.get_model(name)
    if entry.pretrained == "shipped":
        from densedet.clip import create_visual

        visual = create_visual(entry.clip, entry.pretrained)
        mean, std, url = visual.pixel_mean, visual.pixel_std, None
    else:
        known = open_clip.get_pretrained_cfg(entry.clip, entry.pretrained)
        mean, std, url = known["mean"], known["std"], known["url"] or None
    assert (tuple(mean), tuple(std), url) == (entry.pixel_mean, entry.pixel_std, entry.url)


def test_the_shipped_weights_are_the_ones_that_are_described():
    from densedet.clip.factory import weights_file

    entry = model_zoo.get_model("densedet-tiny")
    file = weights_file(entry.clip, entry.pretrained)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == entry.sha256
    card = (ROOT / "docs" / "model_cards" / "densedet-tiny.md").read_text(encoding="utf-8")
    assert entry.sha256 in card and f"**{entry.metrics[0][1]} %**" in card
    assert entry.licence in card and entry.command in card


@pytest.mark.parametrize("name", ["quickstart", "quickstart-panoptic", "quickstart-zero-shot"])
def test_the_card_has_what_the_zoo_says(name):
    entry = model_zoo.get_model(name)
    card = (ROOT / "docs" / "model_cards" / "quickstart.md").read_text(encoding="utf-8")
    (row,) = [line for line in card.splitlines() if line.startswith(f"| `{name}` |")]
    assert f"`{entry.config}`" in row
    assert entry.weights is None or f"`{entry.weights}`" in row
    assert all(f"{what} {value}" in row for what, value in entry.metrics)


def test_configs_use_the_clip_weights_that_are_described():
    """The two are written down once each, in the configs and here: they must agree."""
    pytest.importorskip("detectron2")
    described = {
        (entry.clip, entry.pretrained)
        for entry in map(model_zoo.get_model, model_zoo.list_models())
    }
    used = set()
    for name in model_zoo.list():
        clip = model_zoo.get_config(name).get("clip")
        if clip is not None and "/" not in str(clip.get("pretrained", "/")):
            used.add((clip.model, clip.pretrained))
    assert described - used == set() and used - described == set()


def test_an_unknown_model_gives_close_matches():
    with pytest.raises(ConfigError, match="did you mean quickstart"):
        model_zoo.get_model("quikstart")
    with pytest.raises(ConfigError, match="there are densedet-tiny"):
        model_zoo.get_model("zzz")


def test_trained_weights_are_found_here_or_in_the_checkout(tmp_path, monkeypatch):
    entry = model_zoo.get_model("quickstart")
    here, checkout = tmp_path / "here", tmp_path / "checkout"
    monkeypatch.setattr(entries, "config_root", lambda: checkout)
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(CheckpointError, match="'quickstart' is not trained yet.*`make demo`"):
        entry.weights_file()
    for root in (checkout, here):
        (root / entry.weights).parent.mkdir(parents=True)
        (root / entry.weights).write_bytes(b"")
        assert entry.weights_file().samefile(root / entry.weights)
    assert model_zoo.get_model("quickstart-zero-shot").weights_file() is None
