"""The doctor names what does not fit, and the command line turns errors into one line."""

import ast
import errno
import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from densedet import cli, doctor
from densedet.errors import ConfigError, VocabularyError

ROOT = Path(__file__).resolve().parent.parent


def _assigned(path: Path, name: str) -> object:
    """The literal that a module assigns to ``name`` at its top level."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{path} does not assign {name}")


def _keyword_of_setup(name: str) -> object:
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"setup.py has no {name}")


def test_floors_are_those_of_setup():
    floors = [f"{name}>={oldest}" for name, (_, oldest) in doctor.REQUIRED.items()]
    assert sorted(floors) == sorted(_keyword_of_setup("install_requires"))


def test_floors_of_what_is_optional_are_those_of_the_extras():
    extras = _keyword_of_setup("extras_require")
    stated = [r for extra in ("eval", "export", "hub", "web") for r in extras[extra]]
    floors = {name: oldest for name, (_, oldest, *_) in doctor.OPTIONAL.items()}
    found = {f"{name}>={oldest}" for name, oldest in floors.items()}
    assert {requirement.partition(",")[0] for requirement in stated} <= found


def test_detectron2_is_never_a_requirement():
    assert not [r for r in _keyword_of_setup("install_requires") if "detectron2" in r]
    extras = _keyword_of_setup("extras_require")
    assert not [r for requirements in extras.values() for r in requirements if "detectron2" in r]


def test_every_requirement_is_pinned():
    pins = doctor._known_good()
    names = {*doctor.REQUIRED, *doctor.OPTIONAL, "setuptools", "pytest", "ruff", "mypy"}
    assert sorted(names - pins.keys()) == []


@pytest.mark.parametrize(
    ("constant", "own"),
    [
        ("COMMIT", doctor.DETECTRON2_COMMIT),
        ("TREE_SHA256", doctor.DETECTRON2_TREE_SHA256),
    ],
)
def test_the_installer_proves_the_same_tree(constant, own):
    assert _assigned(ROOT / "tools" / "install_detectron2.py", constant) == own


def test_this_installation_is_usable():
    report = doctor.examine(environment={})
    assert [finding.text for finding in report.findings if finding.fatal] == []
    assert report.usable
    versions = dict(report.versions)
    for name in ("densedet", "python", "CUDA", "detectron2", *doctor.REQUIRED, *doctor.OPTIONAL):
        assert name in versions
    assert versions["numpy"] == importlib.metadata.version("numpy")
    assert "compiled operators" in versions["detectron2"]


def test_usable_with_newer_versions(monkeypatch):
    """Python 3.12.3, torch 2.11, torchvision 0.26 and numpy 2.5.2 are notes at most."""
    found = {"torch": "2.11.0+cu130", "torchvision": "0.26.0", "numpy": "2.5.2"}
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name, m: found.get(name) or real(name, m))
    report = doctor.examine(environment={})
    assert report.usable
    notes = [finding.text for finding in report.findings]
    good = doctor._known_good()
    assert f"torch is 2.11.0+cu130; known good is {good['torch']}" in notes
    assert f"numpy is 2.5.2; known good is {good['numpy']}" in notes


@pytest.mark.parametrize(
    ("version", "oldest", "older"),
    [
        ("2.4", "2.4", False),
        ("2.10.0", "2.4", False),
        ("2.3.9", "2.4", True),
        ("0.1.5.post20221221", "0.1.5", False),
        ("2.15.0+cu130", "2.15", False),
        ("2.0.0rc1", "2", False),
    ],
)
def test_is_older(version, oldest, older):
    assert doctor.is_older(version, oldest) is older


def test_an_old_version_is_a_problem(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda *_: "0.9.1")
    version, findings = doctor._library("timm", "timm", "1.0.15", "pip install timm", True, None)
    assert version == "0.9.1"
    assert [(f.fatal, f.remedy) for f in findings] == [(True, "pip install timm")]
    assert "timm 0.9.1 is older than 1.0.15" in findings[0].text


@pytest.mark.parametrize("fatal", [True, False])
def test_a_missing_library_is_named(fatal):
    version, findings = doctor._library("no-such", "no_such_module", "1", "get it", fatal, None)
    assert version == "missing"
    assert findings == [doctor.Finding("no-such is not installed", "get it", fatal)]


def test_a_missing_faster_coco_eval_is_a_note_that_says_what_needs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)  # as if it were not installed
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "faster_coco_eval" else real(name)
    )
    report = doctor.examine(environment={})
    assert report.usable and dict(report.versions)["faster-coco-eval"] == "missing"
    (finding,) = [f for f in report.findings if f.text == "faster-coco-eval is not installed"]
    assert finding.remedy.startswith("pip install faster-coco-eval (LVIS evaluation needs it")


@pytest.mark.parametrize(
    ("name", "value"), [("TIMM_USE_NAFLEX", "1"), ("TIMM_USE_NAFLEXVIT", "True")]
)
def test_naflex_is_a_problem(name, value):
    findings = list(doctor._surroundings({name: value}))
    assert [(f.fatal, f.remedy) for f in findings] == [(True, f"unset {name}")]
    assert not list(doctor._surroundings({name: "0"}))


def _doctor(tmp_path: Path, *packages: tuple[str, str], **environment: str) -> tuple[int, str]:
    """Run the doctor where ``packages`` (path, text) come before the installed ones."""
    for path, text in packages:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "densedet.cli", "doctor"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **environment, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def test_broken_pair_and_stranger_are_named(tmp_path):
    """torchvision built for another torch, and somebody's package called detectron2."""
    code, text = _doctor(
        tmp_path,
        ("torchvision/__init__.py", "raise RuntimeError('operator torchvision::nms missing')\n"),
        ("detectron2/__init__.py", ""),
        ("tabulate.py", "__version__ = '0.8.1'\n"),
        ("termcolor/__init__.py", ""),
        TIMM_USE_NAFLEX="1",
    )
    assert code == 1
    lines = [" ".join(line.split()) for line in text.splitlines()]
    # what is imported counts, not what the metadata of the installed one says
    assert f"tabulate 0.8.1 in {tmp_path}/tabulate.py" in lines
    assert (
        "problem: tabulate 0.8.1 is older than 0.9, the oldest version that densedet knows" in lines
    )
    assert f"termcolor unknown version in {tmp_path}/termcolor" in lines
    installed = importlib.metadata.version("termcolor")
    assert (
        f"note: termcolor is imported from {tmp_path}/termcolor, not from the installed termcolor "
        f"{installed}" in lines
    )
    assert "problem: torchvision cannot be imported (RuntimeError: operator torchvision" in text
    assert "pip install --force-reinstall torch torchvision" in text
    assert "is not Detectron2 (no detectron2.modeling)" in text
    assert "problem: TIMM_USE_NAFLEX=1 is set" in text
    assert text.splitlines()[-1].startswith("not usable: ")


def test_the_detectron2_that_is_imported_is_printed(tmp_path):
    """A checkout ahead on the path, beside an installed one of another version."""
    import detectron2

    checkout = tmp_path / "detectron2"
    shutil.copytree(Path(detectron2.__file__).parent, checkout)
    with (checkout / "__init__.py").open("a", encoding="utf-8") as file:
        file.write('\n__version__ = "0.7"\n')
    code = (
        "from densedet import doctor; said, findings = doctor._detectron2(); print(said)\n"
        "for finding in findings: print(finding.text, finding.fatal)"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    first, *notes = done.stdout.splitlines()
    assert first.startswith(f"0.7 in {checkout}, another tree (upstream's own installation), ")
    installed = importlib.metadata.version("detectron2")
    assert notes[0] == (
        f"detectron2 is imported from {checkout}, not from the installed detectron2 {installed} "
        "False"
    )


def test_editable_installations_are_at_home(tmp_path):
    """Their metadata lies in site-packages, and says where the code is."""
    info = tmp_path / "site" / "tabulate-9.9.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tabulate\nVersion: 9.9\n")
    distribution = importlib.metadata.PathDistribution(info)
    importlib.import_module("tabulate")
    assert not doctor._has(distribution, "tabulate")
    folder = Path(sys.modules["tabulate"].__file__).parent
    editable = {"dir_info": {"editable": True}, "url": folder.as_uri()}
    (info / "direct_url.json").write_text(json.dumps(editable))
    assert doctor._has(distribution, "tabulate")


def test_pkg_resources_is_a_note(tmp_path, monkeypatch):
    (tmp_path / "model_zoo").mkdir()
    (tmp_path / "model_zoo" / "model_zoo.py").write_text("import pkg_resources\n")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pkg_resources" else real(name)
    )
    findings = list(doctor._model_zoo(tmp_path))
    assert [finding.fatal for finding in findings] == [False]
    assert "setuptools<82" in findings[0].remedy


def test_tree_is_recognised_by_its_files(load_script, tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.py").write_bytes(b"")
    (tmp_path / "b.yaml").write_bytes(b"hello\n")
    (tmp_path / "c.so").write_bytes(b"compiled")
    digest = doctor.detectron2_tree_digest(tmp_path)
    tool = load_script("tools/install_detectron2.py")
    assert digest == tool.tree_digest({"a/b.py": b"", "b.yaml": b"hello\n"})
    for version, tree in (("0.6", "another tree"), ("0.6+g864913f0", "changed since")):
        monkeypatch.setattr(doctor, "_detectron2_version", lambda version=version: version)
        assert tree in doctor._tree(tmp_path)
    monkeypatch.setattr(doctor, "DETECTRON2_TREE_SHA256", digest)
    assert "byte for byte" in doctor._tree(tmp_path)


def test_report_puts_problems_first():
    note, problem = doctor.Finding("n", "x", False), doctor.Finding("p", "y", True)
    report = doctor.Report((("a", "1"), ("long", "2")), (note, problem))
    assert doctor.format_report(report).splitlines() == [
        "a     1",
        "long  2",
        "",
        "problem: p",
        "  -> y",
        "note: n",
        "  -> x",
        "",
        "not usable: 1 problem(s), see above",
    ]


@pytest.mark.parametrize(("usable", "code"), [(True, 0), (False, 1)])
def test_command_prints_the_report(usable, code, monkeypatch, capsys):
    findings = () if usable else (doctor.Finding("bad", "mend it", True),)
    monkeypatch.setattr(doctor, "examine", lambda: doctor.Report((("a", "1"),), findings))
    assert cli.main(["doctor"]) == code
    assert capsys.readouterr().out.startswith("a  1\n")


def test_data_sets_are_not_looked_at_if_unusable(monkeypatch, capsys):
    findings = (doctor.Finding("bad", "mend it", True),)
    monkeypatch.setattr(doctor, "examine", lambda: doctor.Report((("a", "1"),), findings))
    assert cli.main(["doctor", "--datasets"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "data sets: not looked at; mend the problems above, then run this again"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("two\n  lines"), 2, "error: two lines\n"),
        (VocabularyError("empty"), 2, "error: empty\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "secret/a.py"),
            2,
            "error: secret/a.py: Permission denied; choose another place\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_run_tool_turns_errors_into_one_line(error, code, text, capsys):
    def main() -> int:
        raise error

    with pytest.raises(SystemExit) as exit_info:
        cli.run_tool(main)
    assert exit_info.value.code == code
    assert capsys.readouterr().err == text


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (3, 3)])
def test_run_tool_passes_the_result_on(result, code):
    with pytest.raises(SystemExit) as exit_info:
        cli.run_tool(lambda: result)
    assert exit_info.value.code == code


def test_run_tool_does_not_hide_defects():
    with pytest.raises(ZeroDivisionError):
        cli.run_tool(lambda: 1 // 0)
    with pytest.raises(FileNotFoundError):
        cli.run_tool(lambda: len(os.listdir("absent")))


@pytest.mark.parametrize(
    "argv", [[], ["nonsense"], ["doctor", "--nonsense"], ["doctor", "--root", "x"]]
)
def test_wrong_use_is_one_line(argv, capsys):
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1


def test_the_pins_are_for_the_python_of_debian_12():
    """Which is 3.11.2: some packages ask for a later one, and cannot be installed there."""
    from packaging.specifiers import SpecifierSet

    wrong = []
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if "==" not in line or line.startswith("#"):
            continue
        try:
            asked = (
                importlib.metadata.metadata(line.partition("==")[0]).get("Requires-Python") or ""
            )
        except importlib.metadata.PackageNotFoundError:
            continue
        if not SpecifierSet(asked).contains("3.11.2"):
            wrong.append(f"{line} asks for {asked}")
    assert wrong == []
