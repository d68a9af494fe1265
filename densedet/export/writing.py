"""Parts of models as files: `torch.export` programs (.pt2) and ONNX, each with its description.

The description is one JSON document: ``metadata.json`` among the extra files of a program, the
property "densedet" of an ONNX model.
"""

import io
import json
import os
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from densedet.clip.checkpoints import require_suffix
from densedet.errors import ConfigError, InstallationError
from densedet.evaluation.results import installed_versions
from densedet.export.part import ExportPart, Size
from densedet.files import atomic_path, writing
from densedet.weights import weights_digest

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}
INPUT = "images"
PROGRAM_METADATA = "metadata.json"
ONNX_METADATA = "densedet"

_FORMAT = 1
_CELLS = (2, 1024)  # along a side of a picture of free size; torch takes 1 for a constant
_ONNX_PACKAGES = ("onnx", "onnxscript")
_ONNX_MAX_BYTES = 1536 << 20  # torch puts the weights of larger models into a second file

PathLike = str | os.PathLike[str]
Write = Callable[[ExportedProgram, PathLike, Mapping[str, Any]], None]


def describe(part: ExportPart, size: Size | None, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a file must say about itself, as plain data.

    Args:
        part: what is in the file.
        size: (H, W) of its pictures; None for that of the part, which may be any.
        weights: the state dict of the model that the part is of.
    """
    size = size or part.size
    return {
        "format": _FORMAT,
        "part": part.kind,
        "input": {
            "name": INPUT,
            "layout": "[B, 3, H, W] float32, RGB in 0..255; the image statistics are inside",
            "batch": None if part.any_batch else 1,
            "size": None if size is None else list(size),
            "multiple_of": part.multiple,
            "sides": [part.multiple * cells for cells in _CELLS] if size is None else None,
            "pixel_mean": part.pixel_mean.flatten().tolist(),
            "pixel_std": part.pixel_std.flatten().tolist(),
        },
        "outputs": dict(part.outputs),
        "labels": list(part.vocabulary.labels),
        "kinds": list(part.vocabulary.kinds),
        "settings": part.settings(),
        "vocabulary_sha256": part.vocabulary.digest(),
        "weights_sha256": weights_digest(weights),
        "versions": installed_versions(),
    }


def trace(part: ExportPart, size: Size | None = None) -> ExportedProgram:
    """Trace a part with `torch.export`.

    Args:
        part: see `make_part`.
        size: (H, W) of the pictures that the program takes; None for multiples of the part's
            stride, 2 to 1024 strides a side.

    Raises:
        ConfigError: the size does not fit; or torch cannot trace the part, and why.
    """
    size = size or part.size
    if size is not None:
        part.check_size(size)
    # of unequal sides and two pictures, since torch takes sizes that are equal, or 1, for constants
    height, width = size or (3 * part.multiple, 4 * part.multiple)
    images = torch.zeros(2 if part.any_batch else 1, 3, height, width)
    dims: dict[int, Any] = {0: Dim("batch", min=1)} if part.any_batch else {}
    if size is None:
        for axis, name in ((2, "rows"), (3, "columns")):
            cells: Any = Dim(name, min=_CELLS[0], max=_CELLS[1])
            dims[axis] = part.multiple * cells
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own tracing
            # Reading the Python code (strict) keeps the batch free where `len` is taken of it.
            return torch.export.export(
                part, (images,), dynamic_shapes=(dims or None,), strict=part.any_batch
            )
    except Exception as error:  # torch raises its own kinds, which differ from version to version
        remedy = "give a fixed size" if size is None else "this model cannot be exported"
        raise ConfigError(
            f"torch {torch.__version__} cannot trace the {part.kind} part: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}; {remedy}"
        ) from error


def choose_writer(path: PathLike, form: str | None = None) -> Write:
    """The function that writes a file of this name.

    Args:
        path: its suffix decides.
        form: "torch" or "onnx", which the suffix must fit; None takes either.

    Raises:
        ConfigError: no such format, or the suffix is that of no format or of another one.
    """
    if form is not None and form not in SUFFIXES:
        raise ConfigError(f"no format {form!r}; choose from {', '.join(SUFFIXES)}")
    wanted = [SUFFIXES[form]] if form else list(SUFFIXES.values())
    if Path(path).suffix not in wanted:
        raise ConfigError(f"{path}: give a {' or '.join(wanted)} file")
    return write_program if Path(path).suffix == SUFFIXES["torch"] else write_onnx


def write_program(program: ExportedProgram, path: PathLike, metadata: Mapping[str, Any]) -> None:
    """Write a program as a .pt2 file, which ``torch.export.load`` reads.

    Raises:
        ConfigError: the path has another suffix.
        OutputError: the file cannot be written, also where the disk is full.
    """
    require_suffix(path, SUFFIXES["torch"])
    content = io.BytesIO()  # torch's own writer of files ends the process where the disk is full
    torch.export.save(program, content, extra_files={PROGRAM_METADATA: json.dumps(metadata)})
    with atomic_path(path) as temporary, writing(path):
        temporary.write_bytes(content.getbuffer())


def write_onnx(program: ExportedProgram, path: PathLike, metadata: Mapping[str, Any]) -> None:
    """Write a program as one .onnx file, weights included (at most 1.5 GiB of them).

    Raises:
        ConfigError: the path has another suffix, the weights are too many for one file, or the
            program has what ONNX does not know.
        InstallationError: the packages that this needs are not there.
        OutputError: the file cannot be written, also where the disk is full.
    """
    require_suffix(path, SUFFIXES["onnx"])
    missing = [name for name in _ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise InstallationError(
            f"ONNX needs {' and '.join(missing)}: pip install -e '.[export]' in the checkout, or "
            "choose the format torch"
        )
    model = _to_onnx(program, list(metadata["outputs"]))
    _check_bytes(model.model.graph, path)
    model.model.metadata_props[ONNX_METADATA] = json.dumps(metadata)
    with atomic_path(path) as temporary, writing(path):
        model.save(temporary, external_data=False)


def _to_onnx(program: ExportedProgram, outputs: list[str]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=[INPUT], output_names=outputs
            )
    except torch.onnx.OnnxExporterError as error:
        raise ConfigError(
            f"torch {torch.__version__} cannot translate the program to ONNX: "
            f"{str(error).splitlines()[0]}; choose the format torch"
        ) from error


def _check_bytes(graph: Any, path: PathLike) -> None:
    values = [value.const_value for value in graph.initializers.values()]
    size = sum(value.nbytes for value in values if value is not None)
    if size > _ONNX_MAX_BYTES:
        raise ConfigError(
            f"{path}: {size >> 20} MiB of weights are more than the {_ONNX_MAX_BYTES >> 20} MiB "
            "that torch writes into one ONNX file; choose the format torch"
        )
