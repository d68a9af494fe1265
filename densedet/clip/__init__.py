"""CLIP towers as dense encoders, their text towers and their weights; independent of Detectron2."""

from densedet.clip.checkpoints import read_state_dict
from densedet.clip.class_embeddings import ClassEmbeddings, VocabularyEmbedder
from densedet.clip.convert import read_clip, to_released, write_open_clip, write_released
from densedet.clip.export import export_clip
from densedet.clip.factory import (
    build_text_encoder,
    build_visual,
    create_aligned_visual,
    create_clip,
    create_text_encoder,
    create_visual,
    load_checkpoint,
)
from densedet.clip.text import TextEncoder
from densedet.clip.trainable import unlock
from densedet.clip.visual import ClipVisual, VisualFeatures

__all__ = [
    "ClassEmbeddings",
    "ClipVisual",
    "TextEncoder",
    "VisualFeatures",
    "VocabularyEmbedder",
    "build_text_encoder",
    "build_visual",
    "create_aligned_visual",
    "create_clip",
    "create_text_encoder",
    "create_visual",
    "export_clip",
    "load_checkpoint",
    "read_clip",
    "read_state_dict",
    "to_released",
    "unlock",
    "write_open_clip",
    "write_released",
]
