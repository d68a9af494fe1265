"""What an installation consists of, and the remedy for each thing that does not fit.

:func:`examine` imports each library that densedet stands on and returns a :class:`Report`. A
*problem* makes densedet unusable; a *note* is worth knowing: an optional library that is missing, a
version other than the known-good one, a gap that :mod:`densedet.compat` closes.
"""

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from densedet import __version__
from densedet.errors import InstallationError

# Distribution -> (module, oldest version; the floors of setup.py).
REQUIRED = {
    "torch": ("torch", "2.4"),
    "torchvision": ("torchvision", "0.19"),
    "open_clip_torch": ("open_clip", "3.0"),
    "timm": ("timm", "1.0.15"),
    "numpy": ("numpy", "1.26"),
    "pillow": ("PIL", "10.0"),
    "safetensors": ("safetensors", "0.4"),
    "fvcore": ("fvcore", "0.1.5"),
    "iopath": ("iopath", "0.1.9"),
    "omegaconf": ("omegaconf", "2.1"),
    "PyYAML": ("yaml", "6.0"),
    "hydra-core": ("hydra", "1.1"),
    "pycocotools": ("pycocotools.mask", "2.0.7"),
    "opencv-python-headless": ("cv2", "4.8"),
    "shapely": ("shapely", "2.0"),
    "matplotlib": ("matplotlib", "3.7"),
    "tensorboard": ("tensorboard", "2.14"),
    "tabulate": ("tabulate", "0.9"),
    "termcolor": ("termcolor", "1.1"),
    "tqdm": ("tqdm", "4.60"),
}
# Distribution -> (module, oldest version, what it is for, how to get it).
OPTIONAL = {
    "faster-coco-eval": (
        "faster_coco_eval",
        "1.8",
        "LVIS evaluation needs it; COCO's is several times as fast with it",
        "pip install faster-coco-eval",
    ),
    "lvis": ("lvis", "0.5.3", "Detectron2's LVISEvaluator", "pip install --no-deps lvis"),
    "panopticapi-lite": (
        "panopticapi",
        "0.2",
        "Detectron2's COCOPanopticEvaluator",
        "pip install --no-deps panopticapi-lite",
    ),
    "huggingface_hub": (
        "huggingface_hub",
        "0.27",
        "models from the Hub",
        "pip install huggingface_hub",
    ),
    "onnx": ("onnx", "1.17", "ONNX files", "pip install onnx"),
    "onnxscript": ("onnxscript", "0.5", "ONNX files", "pip install onnxscript"),
    "onnxruntime": ("onnxruntime", "1.20", "to run ONNX files", "pip install onnxruntime"),
    "gradio": ("gradio", "6.0", "the web page", "pip install gradio"),
}
# A distribution that brings the same module may stand in for another.
ALTERNATIVES = {
    "opencv-python-headless": ("opencv-python", "opencv-contrib-python"),
    "panopticapi-lite": ("panopticapi",),
}
DETECTRON2_COMMIT = "864913f0e57e87a75c8cc0c7d79ecbd774fc669b"
DETECTRON2_TREE_SHA256 = "1005559a6127b9afc02bd35d52e7b53503e28feedc3ec0f86af0e54902226feb"
GET_DETECTRON2 = (
    "run tools/install_detectron2.py of the checkout with this interpreter, or, where GitHub can "
    "be reached, pip install --no-build-isolation "
    "'git+https://github.com/facebookresearch/detectron2.git'"
)
REINSTALL_PAIR = (
    "install the two together: pip install --force-reinstall torch torchvision "
    "(a build of torch for the CPU alone may have no matching torchvision)"
)


@dataclass(frozen=True)
class Finding:
    """Something that does not fit: what it is, what to do, and whether densedet runs with it."""

    text: str
    remedy: str
    fatal: bool


@dataclass(frozen=True)
class Report:
    """Versions ``(name, what is there)`` in the order of the report, and the findings."""

    versions: tuple[tuple[str, str], ...]
    findings: tuple[Finding, ...]

    @property
    def usable(self) -> bool:
        """Whether densedet runs here: no finding is fatal."""
        return not any(finding.fatal for finding in self.findings)


def examine(environment: Mapping[str, str] = os.environ) -> Report:
    """Import the libraries that densedet stands on and report what is there.

    Args:
        environment: The environment variables to judge.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the libraries, while they are imported
        return _examine(environment)


def format_report(report: Report) -> str:
    """Return the report as text: versions, then problems and notes, then the verdict."""
    width = max(len(name) for name, _ in report.versions)
    lines = [f"{name:<{width}}  {what}" for name, what in report.versions]
    if report.findings:
        lines.append("")
    for finding in sorted(report.findings, key=lambda finding: not finding.fatal):
        lines.append(f"{'problem' if finding.fatal else 'note'}: {finding.text}")
        lines.append(f"  -> {finding.remedy}")
    problems = sum(finding.fatal for finding in report.findings)
    lines += ["", "usable" if report.usable else f"not usable: {problems} problem(s), see above"]
    return "\n".join(lines)


def is_older(version: str, oldest: str) -> bool:
    """Whether the release numbers of ``version`` come before those of ``oldest``."""
    return _release(version) < _release(oldest)


def detectron2_tree_digest(folder: Path) -> str:
    """Return the digest of the Python and YAML files of an installed Detectron2.

    It is the sha256 of the lines ``path git-blob-id``, sorted by path, as in
    ``tools/install_detectron2.py``, and equals ``DETECTRON2_TREE_SHA256`` for the tree installed by
    that tool.

    Args:
        folder: The package's folder.
    """
    paths = (path for path in folder.rglob("*") if path.suffix in (".py", ".yaml"))
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    lines = []
    for name in sorted(files):
        blob = b"blob %d\0" % len(files[name]) + files[name]
        lines.append(f"{name} {hashlib.sha1(blob, usedforsecurity=False).hexdigest()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _examine(environment: Mapping[str, str]) -> Report:
    versions: list[tuple[str, str]] = [
        ("densedet", f"{__version__} in {Path(__file__).parent}"),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
    ]
    findings: list[Finding] = []
    known_good = _known_good()
    for name, (module, oldest) in REQUIRED.items():
        remedy = f"pip install '{name}>={oldest}'"
        version, problems = _library(name, module, oldest, remedy, True, known_good.get(name))
        versions.append((name, version))
        findings += problems
        if name == "torch":
            versions.append(("CUDA", _cuda()))
    findings += _torchvision_operators()
    tree, problems = _detectron2()
    versions.append(("detectron2", tree))
    findings += problems
    for name, (module, oldest, purpose, remedy) in OPTIONAL.items():
        version, problems = _library(
            name, module, oldest, f"{remedy} ({purpose})", False, known_good.get(name)
        )
        versions.append((name, version))
        findings += problems
    findings += _surroundings(environment)
    return Report(tuple(versions), tuple(findings))


def _library(
    name: str, module: str, oldest: str, remedy: str, fatal: bool, known_good: str | None
) -> tuple[str, list[Finding]]:
    """Examine one library; return what to print for it and what is wrong with it."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a broken binary raises OSError, RuntimeError, AttributeError
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            return "missing", [Finding(f"{name} is not installed", remedy, fatal)]
        if module == "torchvision":
            remedy = REINSTALL_PAIR
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return "broken", [Finding(f"{name} cannot be imported ({reason})", remedy, fatal)]
    version, shadowed = _version(name, module), list(_shadowed(name, module))
    said = f"{version or 'unknown version'}{f' in {_folder(module)}' if shadowed else ''}"
    if version is None:
        return said, shadowed
    if is_older(version, oldest):
        text = f"{name} {version} is older than {oldest}, the oldest version that densedet knows"
        return said, [Finding(text, remedy, fatal), *shadowed]
    if known_good and version.partition("+")[0] != known_good:
        text = f"{name} is {version}; known good is {known_good}"
        advice = f"nothing, unless it misbehaves; then pip install {name}=={known_good}"
        return said, [Finding(text, advice, False), *shadowed]
    return said, shadowed


def _version(name: str, module: str) -> str | None:
    """Of what is imported: from its package's metadata only if that package has the module."""
    for distribution in _distributions(name):
        if _has(distribution, module):
            return distribution.version
    return getattr(sys.modules[module.partition(".")[0]], "__version__", None)


def _shadowed(name: str, module: str) -> Iterator[Finding]:
    """A module that is imported from elsewhere than its package was installed."""
    distributions = _distributions(name)
    if distributions and not any(_has(distribution, module) for distribution in distributions):
        yield Finding(
            f"{name} is imported from {_folder(module)}, not from the installed "
            f"{distributions[0].name} {distributions[0].version}",
            "nothing, if that is meant; else take the folder out of PYTHONPATH, or run elsewhere",
            False,
        )


def _distributions(name: str) -> list[importlib.metadata.Distribution]:
    found = []
    for distribution in (name, *ALTERNATIVES.get(name, ())):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(importlib.metadata.distribution(distribution))
    return found


def _has(distribution: importlib.metadata.Distribution, module: str) -> bool:
    """Whether the imported module lies where the distribution, maybe an editable one, has it."""
    folder = _folder(module)
    roots = [Path(str(distribution.locate_file("")))]
    source = json.loads(distribution.read_text("direct_url.json") or "{}")
    if source.get("dir_info", {}).get("editable"):
        roots.append(Path(url2pathname(urlsplit(source["url"]).path)))
    return folder is None or any(folder.is_relative_to(root.resolve()) for root in roots)


def _folder(module: str) -> Path | None:
    """Where the top package of an imported module lies; None where it has no file."""
    package = sys.modules[module.partition(".")[0]]
    places = [*getattr(package, "__path__", ()), getattr(package, "__file__", None)]
    return next((Path(place).resolve() for place in places if place), None)


def _release(version: str) -> tuple[int, ...]:
    numbers = re.match(r"\d+(\.\d+)*", version)
    found = tuple(int(n) for n in numbers.group().split(".")) if numbers else ()
    return found + (0,) * (6 - len(found))


def _known_good() -> dict[str, str]:
    """Read the pins of constraints.txt, which a wheel carries too; empty where it is absent."""
    from densedet.model_zoo import config_root

    try:
        text = (config_root() / "constraints.txt").read_text(encoding="utf-8")
    except (InstallationError, OSError):
        return {}
    return dict(line.split("==") for line in text.splitlines() if "==" in line and line[0] != "#")


def _cuda() -> str:
    torch: Any = sys.modules.get("torch")
    if torch is None:
        return "unknown without torch"
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
    if not torch.cuda.is_available():
        return f"{build}, no device: runs on the CPU"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{build}, {len(names)} device(s): {', '.join(names)}"


def _torchvision_operators() -> Iterator[Finding]:
    """torchvision may import although its operators were built for another torch."""
    torch: Any = sys.modules.get("torch")
    torchvision: Any = sys.modules.get("torchvision")
    if torch is None or torchvision is None:
        return
    try:
        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except Exception as error:
        yield Finding(
            f"torchvision {torchvision.__version__} does not work with torch {torch.__version__} "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]})",
            REINSTALL_PAIR,
            True,
        )


def _detectron2() -> tuple[str, list[Finding]]:
    spec = importlib.util.find_spec("detectron2")
    if spec is None:
        return "missing", [Finding("Detectron2 is not installed", GET_DETECTRON2, True)]
    folder = Path(next(iter(spec.submodule_search_locations or []), str(spec.origin)))
    if not (folder / "modeling" / "__init__.py").is_file():
        text = f"the package detectron2 in {folder} is not Detectron2 (no detectron2.modeling)"
        return "another package", [
            Finding(text, f"pip uninstall detectron2, then {GET_DETECTRON2}", True)
        ]
    try:
        importlib.import_module("detectron2.structures")
    except Exception as error:
        text = f"Detectron2 in {folder} cannot be imported ({type(error).__name__}: {error})"
        return "broken", [Finding(text, "mend what the message names, then run this again", True)]
    said = f"{_detectron2_version()} in {folder}, {_tree(folder)}, {_operators()}"
    return said, [*_shadowed("detectron2", "detectron2"), *_model_zoo(folder)]


def _detectron2_version() -> str:
    return _version("detectron2", "detectron2") or "unknown version"


def _tree(folder: Path) -> str:
    if detectron2_tree_digest(folder) == DETECTRON2_TREE_SHA256:
        return f"the tree of commit {DETECTRON2_COMMIT[:8]} (January 2024), byte for byte"
    if _detectron2_version().endswith(f"+g{DETECTRON2_COMMIT[:8]}"):
        return f"the tree of commit {DETECTRON2_COMMIT[:8]} (January 2024), changed since"
    return "another tree (upstream's own installation)"


def _operators() -> str:
    try:
        importlib.import_module("detectron2._C")
    except ImportError:
        return "no compiled operators (densedet needs none)"
    return "with compiled operators"


def _model_zoo(folder: Path) -> Iterator[Finding]:
    source = (folder / "model_zoo" / "model_zoo.py").read_text(encoding="utf-8")
    if "pkg_resources" in source and importlib.util.find_spec("pkg_resources") is None:
        yield Finding(
            "detectron2.model_zoo imports pkg_resources, which setuptools 82 removed",
            "nothing in densedet's tools (densedet.compat.apply() lends it); in your own programs "
            "call that first, or pip install 'setuptools<82'",
            False,
        )


def _surroundings(environment: Mapping[str, str]) -> Iterator[Finding]:
    for name, value in (("TIMM_USE_NAFLEX", "1"), ("TIMM_USE_NAFLEXVIT", "true")):
        if environment.get(name, "").lower() == value:
            yield Finding(
                f"{name}={environment[name]} is set: timm builds other image towers, "
                "which no CLIP checkpoint fits",
                f"unset {name}",
                True,
            )
