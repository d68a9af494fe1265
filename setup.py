"""The package densedet: code, class lists, the tiny CLIP, and the configs of the checkout."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
FILES = "densedet/model_zoo/files"
# What lies beside the package in a checkout and inside it in a wheel, with the same relative paths.
CARRIED = ("configs/**/*.py", "projects/*/configs/*.py", "constraints.txt")


class BuildWithConfigs(build_py):
    """Put the configs into the wheel; an editable installation reads them from the checkout."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for source, target in self._carried().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode=1):
        carried = [] if self.editable_mode else list(self._carried().values())
        return super().get_outputs(include_bytecode) + carried

    def get_source_files(self):
        """Also what a source archive must have."""
        return super().get_source_files() + list(self._carried())

    def _carried(self):
        sources = sorted(path.relative_to(ROOT) for glob in CARRIED for path in ROOT.glob(glob))
        return {str(path): str(Path(self.build_lib, FILES, path)) for path in sources}


def _version():
    line = next(
        line
        for line in (ROOT / "densedet/__init__.py").read_text(encoding="utf-8").splitlines()
        if line.startswith("__version__")
    )
    return line.split('"')[1]


readme = ROOT / "README.md"

setup(
    name="densedet",
    version=_version(),
    description="Detection and segmentation with words as classes, on CLIP and Detectron2",
    long_description=readme.read_text(encoding="utf-8") if readme.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    packages=find_packages(include=["densedet", "densedet.*"]),
    package_data={
        "densedet": ["py.typed"],
        "densedet.vocabulary": ["resources/*.json"],
        "densedet.clip": ["resources/*"],
    },
    python_requires=">=3.10",
    # The floors are those of densedet/doctor.py, and a test compares them. Detectron2 is not here:
    # it has no release on PyPI and its name is free there. See docs/install.md.
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",
        "open_clip_torch>=3.0",
        "timm>=1.0.15",
        "numpy>=1.26",
        "pillow>=10.0",
        "safetensors>=0.4",
        "fvcore>=0.1.5",
        "iopath>=0.1.9",
        "omegaconf>=2.1",
        "PyYAML>=5.4",
        "hydra-core>=1.1",
        "pycocotools>=2.0.7",
        "opencv-python-headless>=4.8",
        "shapely>=2.0",
        "matplotlib>=3.7",
        "tensorboard>=2.14",
        "tabulate>=0.9",
        "termcolor>=1.1",
        "tqdm>=4.60",
    ],
    extras_require={
        # lvis and panopticapi-lite belong to the evaluation too, but their metadata is stale (the
        # one asks for another build of OpenCV, the other for numpy 1), so they are not listed:
        # pip install -c constraints.txt --no-deps lvis panopticapi-lite
        "eval": ["faster-coco-eval>=1.8"],
        "export": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"],
        "hub": ["huggingface_hub>=0.27"],
        "web": ["gradio>=6.0,<7"],
        # Gradio asks for pillow<13 and serves with the 13 of constraints.txt: beside that file it
        # goes in with --no-deps (docs/install.md), and this is what else it needs.
        "web-requirements": [
            "anyio",
            "brotli>=1.2.1",
            "fastapi>=0.115.2,<1",
            "groovy~=0.1",
            "httpx>=0.24.1,<1",
            "huggingface_hub>=1.16,<3",
            "jinja2<4",
            "orjson~=3.0",
            "pandas<4",
            "pydantic>=2,<3",
            "pydub<1",
            "python-multipart>=0.0.18,<1",
            "pytz",
            "safehttpx>=0.1.7,<0.2",
            "semantic-version~=2.0",
            "starlette>=1.0.1,<2",
            "tomlkit>=0.12,<0.15",
            "typer>=0.12,<1",
            "uvicorn>=0.14",
        ],
        "docs": [
            "mkdocs-material>=9.6",
            "mkdocstrings[python]>=1.0",
            "nbconvert>=7.16",
            "ipykernel>=6.29",
        ],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff>=0.6",
            "mypy>=1.11",
            "playwright>=1.50",
            "scipy>=1.11",
            "setuptools>=64,<82",
            "wheel",
        ],
    },
    entry_points={"console_scripts": ["densedet = densedet.cli:main"]},
    cmdclass={"build_py": BuildWithConfigs},
    zip_safe=False,
)
