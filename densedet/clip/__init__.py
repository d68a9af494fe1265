"""CLIP towers as dense encoders, their text towers and their weights; independent of Detectron2."""

from densedet.clip.checkpoints import read_state_dict
from densedet.clip.class_embeddings import ClassEmbeddings, VocabularyEmbedder
from densedet.clip.factory import (
    build_text_encoder,
    build_visual,
    create_clip,
    create_text_encoder,
    create_visual,
    load_checkpoint,
)
from densedet.clip.text import TextEncoder
from densedet.clip.visual import ClipVisual, VisualFeatures

__all__ = [
    "ClassEmbeddings",
    "ClipVisual",
    "TextEncoder",
    "VisualFeatures",
    "VocabularyEmbedder",
    "build_text_encoder",
    "build_visual",
    "create_clip",
    "create_text_encoder",
    "create_visual",
    "load_checkpoint",
    "read_state_dict",
]
