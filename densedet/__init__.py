"""densedet: detection and segmentation with words as classes.

Pictures become dense embeddings, words become embeddings, and every head compares the two against
a vocabulary that is data. Importing this package has no side effect: no dataset is registered, no
third party is patched and no heavy library is loaded. ``densedet.Predictor`` is the user's API,
``densedet.model_zoo`` has the configs, ``densedet doctor`` examines an installation.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densedet.predictor import Predictor

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    """Import ``Predictor`` when it is asked for: it takes torch and Detectron2."""
    if name == "Predictor":
        from densedet import compat

        compat.hush_deprecations()
        compat.defer_dynamo()
        from densedet.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
