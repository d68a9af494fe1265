"""Models as files that need no text tower and no densedet: `torch.export` programs and ONNX."""

from densedet.export.detector import select_detections
from densedet.export.part import ExportPart
from densedet.export.parts import make_dense_part, make_part
from densedet.export.writing import choose_writer, describe, trace, write_onnx, write_program

__all__ = [
    "ExportPart",
    "choose_writer",
    "describe",
    "make_dense_part",
    "make_part",
    "select_detections",
    "trace",
    "write_onnx",
    "write_program",
]
