"""The rules of the house about imports, read from the source with ``ast``.

tools, projects -> engine, evaluation, data, modeling -> regions, clip -> vocabulary -> errors
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from densedet import doctor

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "densedet").rglob("*.py"))

BASE = {"errors", "files"}
ENCODERS = BASE | {"weights", "vocabulary", "clip", "regions"}
HOUSE = ENCODERS | {"modeling", "data", "evaluation", "engine", "compat", "exits", "model_zoo"}
# What stands on the rooms; none of them imports it.
TOP = {"benchmark", "cli", "doctor", "export", "predictor", "saved_model", "video", "visualization"}
TOP |= {"fonts", "tasks", "views", "web"}
# Room -> the rooms of densedet that it may import; one that is not listed may import every room.
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "exits": BASE,
    "weights": BASE,
    "vocabulary": BASE,
    "clip": BASE | {"weights", "vocabulary"},
    "regions": BASE | {"weights"},
    "compat": BASE,
    "model_zoo": BASE,
    "modeling": ENCODERS | {"compat"},
    "data": HOUSE,
    "evaluation": HOUSE,
    "engine": HOUSE,
}
# Room -> third parties that it must do without.
FORBIDDEN = {
    "errors": {"torch", "numpy", "detectron2"},
    "files": {"torch", "numpy", "detectron2"},
    "weights": {"detectron2"},
    "vocabulary": {"torch", "torchvision", "open_clip", "timm", "detectron2"},
    "clip": {"detectron2"},
    "regions": {"detectron2"},
}
OUTSIDE = {"tools", "projects", "configs", "tests"}
KNOWN_THIRD_PARTIES = (
    {module.partition(".")[0] for module, *_ in doctor.REQUIRED.values()}
    | {module for module, *_ in doctor.OPTIONAL.values()}
    | {"detectron2"}
)


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Yield ``(line, absolute name)`` of everything imported anywhere in a module."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{start}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) == "import_module" and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield node.lineno, name.value


def _called(node: ast.Call) -> str:
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def broken_rules(source: str, path: str) -> list[str]:
    """Return what a file of densedet breaks; ``path`` is relative to the checkout."""
    parts = Path(path).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(parts[:-1] if is_package else parts)
    room = parts[1]
    tree = ast.parse(source)
    found = []
    for line, name in imports(tree, module, is_package):
        top, _, rest = name.partition(".")
        target = rest.partition(".")[0]
        if top == "densedet":
            inside = target == room or target not in HOUSE | TOP
            if room in ALLOWED and not inside and target not in ALLOWED[room]:
                found.append(f"{path}:{line}: {room} imports densedet.{target}")
        elif top in FORBIDDEN.get(room, ()):
            found.append(f"{path}:{line}: {room} imports {top}")
        elif top in OUTSIDE:
            found.append(f"{path}:{line}: the library imports {top}")
        elif top not in sys.stdlib_module_names | KNOWN_THIRD_PARTIES:
            found.append(f"{path}:{line}: {top} is not a requirement of setup.py")
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"{path}:{node.lineno}: bare except")
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
            found.append(f"{path}:{node.lineno}: print in the library")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_rules_hold(path):
    name = path.relative_to(ROOT).as_posix()
    assert broken_rules(path.read_text(encoding="utf-8"), name) == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("vocabulary/a.py", "import torch", "vocabulary imports torch"),
        ("vocabulary/a.py", "def f():\n    from torch import nn", "vocabulary imports torch"),
        ("clip/a.py", "from detectron2.layers import ShapeSpec", "clip imports detectron2"),
        (
            "regions/a.py",
            "import importlib\nimportlib.import_module('detectron2.structures')",
            "regions imports detectron2",
        ),
        ("vocabulary/a.py", "from densedet.clip import text", "vocabulary imports densedet.clip"),
        ("vocabulary/a.py", "from ..clip import text", "vocabulary imports densedet.clip"),
        ("vocabulary/a.py", "from densedet import clip", "vocabulary imports densedet.clip"),
        ("vocabulary/__init__.py", "from .. import clip", "vocabulary imports densedet.clip"),
        ("modeling/neck/a.py", "from densedet.data import x", "modeling imports densedet.data"),
        (
            "modeling/backbone/a.py",
            "from ...evaluation.coco import x",
            "modeling imports densedet.evaluation",
        ),
        ("clip/a.py", "import densedet.modeling.backbone", "clip imports densedet.modeling"),
        ("data/a.py", "import densedet.predictor", "data imports densedet.predictor"),
        ("engine/a.py", "from densedet import web", "engine imports densedet.web"),
        ("errors.py", "import densedet.files", "errors imports densedet.files"),
        ("engine/a.py", "from tools.demo import main", "the library imports tools"),
        ("engine/a.py", "import pandas", "pandas is not a requirement"),
        ("data/a.py", "try:\n    x = 1\nexcept:\n    pass", "bare except"),
        ("data/a.py", "print('x')", "print in the library"),
    ],
)
def test_the_checker_finds(path, source, expected):
    found = broken_rules(source, f"densedet/{path}")
    assert len(found) == 1 and expected in found[0], found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("clip/a.py", "import torch\nfrom densedet.vocabulary import Vocabulary"),
        ("vocabulary/a.py", "from .templates import x\nfrom densedet.errors import ConfigError"),
        ("modeling/a.py", "from detectron2.layers import ShapeSpec\nfrom densedet import clip"),
        ("evaluation/a.py", "import numpy as np\nfrom densedet.data import x"),
        ("predictor.py", "from densedet.modeling import x\nfrom densedet import __version__"),
        ("cli.py", "import sys\nsys.stdout.write('x')"),
    ],
)
def test_the_checker_allows(path, source):
    assert broken_rules(source, f"densedet/{path}") == []


def _python(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_vocabulary_works_without_torch():
    _python(
        "import sys; sys.modules['torch'] = None\n"
        "from densedet.vocabulary import Vocabulary\n"
        "assert len(Vocabulary.parse('cat,kitten;remote control')) == 2"
    )


@pytest.mark.parametrize("room", ["clip", "regions"])
def test_works_without_detectron2(room):
    _python(f"import sys; sys.modules['detectron2'] = None\nimport densedet.{room}")


def test_nothing_happens_at_import():
    """Importing every module registers no data set, patches nothing and writes nothing."""
    pytest.importorskip("detectron2")
    _python(
        "import importlib, pkgutil, logging\n"
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "from detectron2.evaluation import coco_evaluation\n"
        "evaluation = coco_evaluation.COCOeval_opt\n"
        "before = DatasetCatalog.list(), MetadataCatalog.list(), len(logging.root.handlers)\n"
        "import densedet\n"
        "names = [m.name for m in pkgutil.walk_packages(densedet.__path__, 'densedet.')]\n"
        "assert 'densedet.doctor' in names\n"
        "for name in names: importlib.import_module(name)\n"
        "after = DatasetCatalog.list(), MetadataCatalog.list(), len(logging.root.handlers)\n"
        "assert before == after, (before, after)\n"
        "assert coco_evaluation.COCOeval_opt is evaluation"
    )
