"""The Detectron2 installer: its proof, its wheel, and every way in which it must refuse."""

import base64
import hashlib
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / "tools" / "install_detectron2.py"


@pytest.fixture(scope="module")
def tool(load_script: Callable[[str], ModuleType]) -> ModuleType:
    return load_script("tools/install_detectron2.py")


@pytest.fixture
def labgym(tmp_path: Path) -> Path:
    """A small wheel laid out like LabGym's."""
    path = tmp_path / "labgym.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("LabGym/__init__.py", "secret = 1\n")
        archive.writestr("LabGym/detectron2/", "")
        archive.writestr("LabGym/detectron2/b.py", "from LabGym.detectron2.a import x\n")
        archive.writestr("LabGym/detectron2/a/c.yaml", "x: 1\n")
    return path


CONVERTED = {"b.py": b"from detectron2.a import x\n", "a/c.yaml": b"x: 1\n"}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_blob_id_is_gits(tool, tmp_path):
    (tmp_path / "f").write_bytes(b"hello\n")
    git = subprocess.run(
        ["git", "hash-object", "f"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert tool.git_blob_id(b"hello\n") == git.stdout.strip()


def test_tree_digest_covers_names_and_contents(tool):
    empty = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # git's name of the empty file
    expected = hashlib.sha256(f"a {empty}\nb/c {empty}\n".encode()).hexdigest()
    assert tool.tree_digest({"b/c": b"", "a": b""}) == expected
    assert tool.tree_digest({"b/c": b"", "z": b""}) != expected
    assert tool.tree_digest({"b/c": b"1", "a": b""}) != expected


def test_read_tree_changes_the_prefix_and_takes_nothing_else(tool, labgym):
    files = tool.read_tree(labgym, _sha256(labgym), tool.tree_digest(CONVERTED))
    assert files == CONVERTED


def test_read_tree_refuses_another_wheel(tool, labgym):
    with pytest.raises(tool.InstallError, match=f"has sha256 {_sha256(labgym)}, expected 00"):
        tool.read_tree(labgym, "00", tool.tree_digest(CONVERTED))


def test_read_tree_refuses_another_tree(tool, labgym):
    with pytest.raises(tool.InstallError, match="2 files .* are not Detectron2 at 864913f0"):
        tool.read_tree(labgym, _sha256(labgym), "00")


def test_read_tree_refuses_what_is_no_archive(tool, tmp_path):
    broken = tmp_path / "x.whl"
    broken.write_bytes(b"no zip")
    with pytest.raises(tool.InstallError, match="is not a wheel"):
        tool.read_tree(broken, _sha256(broken), "00")


def test_wheel_is_ordinary_and_the_same_each_time(tool, tmp_path):
    members = tool.wheel_members(CONVERTED, b"licence text")
    first = tool.write_wheel(tmp_path / "one", members)
    second = tool.write_wheel(tmp_path / "two", members)
    assert first.read_bytes() == second.read_bytes()
    assert first.name == "detectron2-0.6+g864913f0-py3-none-any.whl"
    info = "detectron2-0.6+g864913f0.dist-info"
    with zipfile.ZipFile(first) as archive:
        names = archive.namelist()
        record = archive.read(f"{info}/RECORD").decode().splitlines()
        metadata = archive.read(f"{info}/METADATA").decode()
        assert archive.read("detectron2/b.py") == CONVERTED["b.py"]
        assert archive.read(f"{info}/LICENSE") == b"licence text"
        rows = dict.fromkeys(names)
        for line in record:
            path, digest, size = line.rsplit(",", 2)
            rows.pop(path)
            if path != f"{info}/RECORD":
                content = archive.read(path)
                raw = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
                assert (digest, int(size)) == (f"sha256={raw.decode()}", len(content))
    assert not rows, "files of the wheel that RECORD does not list"
    assert "Requires-Dist: setuptools<82" in metadata.splitlines()
    assert metadata.count("Requires-Dist:") == 16
    assert "labgym==3.1.2" in metadata


def test_pip_installs_the_wheel(tool, tmp_path):
    wheel = tool.write_wheel(tmp_path, tool.wheel_members(CONVERTED, b"licence"))
    target = tmp_path / "target"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(target), str(wheel)], check=True)
    assert (target / "detectron2" / "b.py").read_bytes() == CONVERTED["b.py"]
    found = importlib.metadata.Distribution.discover(name="detectron2", path=[str(target)])
    assert [distribution.version for distribution in found] == [tool.VERSION]


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def _assert_refused(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr


def test_wrong_wheel_writes_nothing(labgym, tmp_path):
    out = tmp_path / "out"
    _assert_refused(_run("--wheel", str(labgym), "--out", str(out)), "expected a2900cff")
    assert not out.exists()


def test_missing_wheel(tmp_path):
    done = _run("--wheel", str(tmp_path / "none.whl"), "--out", str(tmp_path / "out"))
    _assert_refused(done, "cannot read")
    assert not (tmp_path / "out").exists()


def test_no_network_names_the_way_out(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    done = _run("--out", str(tmp_path / "out"), PIP_NO_INDEX="1", PIP_FIND_LINKS=str(empty))
    _assert_refused(done, "without network give a local copy with --wheel")
    assert not (tmp_path / "out").exists()


def test_wrong_option_is_one_line():
    _assert_refused(_run("--nonsense"), "--nonsense")


def test_importable_detectron2_is_left_alone(tmp_path):
    for module in ("__init__", "structures/__init__", "modeling/__init__"):
        path = tmp_path / "detectron2" / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("__version__ = '9.9'\n", encoding="utf-8")
    done = _run("--wheel", "none.whl", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"Detectron2 9.9 in {tmp_path / 'detectron2'} is importable and is left alone\n"
    )


def test_a_broken_detectron2_is_named_and_not_touched(tmp_path):
    for module, text in (("__init__", "import nothing_of_that_name"), ("modeling/__init__", "")):
        path = tmp_path / "detectron2" / f"{module}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    done = _run("--wheel", "none.whl", PYTHONPATH=str(tmp_path))
    _assert_refused(done, "No module named 'nothing_of_that_name'")


def test_a_stranger_called_detectron2_is_named(tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("", encoding="utf-8")
    done = _run("--wheel", "none.whl", PYTHONPATH=str(tmp_path))
    _assert_refused(done, "is not Detectron2 (no detectron2.modeling)")


def test_out_that_is_a_file(tool, tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(tool.InstallError, match="cannot write to"):
        tool.write_wheel(tmp_path / "file", {"a": b""})
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


def test_installed_tree_is_the_proved_one(tool):
    try:
        version = importlib.metadata.version("detectron2")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("Detectron2 is not installed as a distribution")
    if version != tool.VERSION:
        pytest.skip(f"Detectron2 {version} is not this tool's")
    folder = Path(importlib.util.find_spec("detectron2").origin).parent
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(files) == 306
    assert tool.tree_digest(files) == tool.TREE_SHA256


def test_commands_of_the_docs_are_those_of_the_makefile():
    """CI runs the Makefile, so what docs/install.md says by hand is what CI runs."""
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    by_hand = text.split("### The same by hand")[1].split("```")[1].splitlines()[1:]
    recipe = (ROOT / "Makefile").read_text(encoding="utf-8").split("$(STAMP):")[1].split("\n\n")[0]
    names = {"$(PIP)": "pip", "$(PY)": "python", "$(VENV)/bin/": ""}
    for variable, name in names.items():
        recipe = recipe.replace(variable, name)
    commands = [line.strip().removeprefix("@") for line in recipe.splitlines()]
    commands = [c for c in commands[1:] if not c.startswith(("echo", "touch"))]
    assert by_hand[:2] == ["python3 -m venv .venv", ". .venv/bin/activate"]
    assert by_hand[2:] == commands


def test_the_real_wheel(tool, tmp_path):
    """Set DENSEDET_LABGYM_WHEEL to a wheel of labgym==3.1.2 to run this one."""
    wheel = os.environ.get("DENSEDET_LABGYM_WHEEL")
    if not wheel:
        pytest.skip("DENSEDET_LABGYM_WHEEL is not set")
    done = _run("--wheel", wheel, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / tool.WHEEL_NAME) as archive:
        prefix = "detectron2/"
        files = {
            name.removeprefix(prefix): archive.read(name)
            for name in archive.namelist()
            if name.startswith(prefix)
        }
    assert tool.tree_digest(files) == tool.TREE_SHA256
