"""Models as folders: config, weights, vocabulary and card, written and read by one call."""

from densedet.saved_model.folder import is_saved_model
from densedet.saved_model.reading import SavedModel, load_model, open_model
from densedet.saved_model.writing import save_model

__all__ = ["SavedModel", "is_saved_model", "load_model", "open_model", "save_model"]
