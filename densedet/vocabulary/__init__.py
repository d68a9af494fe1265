"""Vocabularies: what a model is asked to find, as pure data (no torch, no Detectron2)."""

from densedet.vocabulary.category import Category
from densedet.vocabulary.class_lists import (
    CLASS_LISTS,
    ShapesWorldWords,
    class_list_ids,
    shapes_world_words,
)
from densedet.vocabulary.templates import TEMPLATE_SETS, clean_name, render_prompts
from densedet.vocabulary.vocabulary import Vocabulary

__all__ = [
    "CLASS_LISTS",
    "TEMPLATE_SETS",
    "Category",
    "ShapesWorldWords",
    "Vocabulary",
    "class_list_ids",
    "clean_name",
    "render_prompts",
    "shapes_world_words",
]
