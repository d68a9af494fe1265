"""Detectron2 building blocks of densedet."""
