"""densedet: detection and segmentation with words as classes.

Pictures become dense embeddings, words become embeddings, and every head compares the two against
a vocabulary that is data. Importing this package has no side effect: no dataset is registered, no
third party is patched and no heavy library is loaded. ``densedet.predictor`` is the user's API,
``densedet.model_zoo`` has the configs, ``densedet doctor`` examines an installation.
"""

__version__ = "0.1.0"
