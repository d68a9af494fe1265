"""The configs of this project by name, from a checkout and from an installed wheel alike.

>>> from densedet import model_zoo
>>> model_zoo.list()                                               # doctest: +SKIP
['projects/fvit/configs/ov_coco_eva_b16.py', ...]
>>> cfg = model_zoo.get_config("projects/fvit/configs/quickstart.py")  # doctest: +SKIP

Models with a short name, and what is known of their weights:

>>> model_zoo.get_model("densedet-tiny").licence
'Apache-2.0'
"""

from densedet.model_zoo.configs import config_root, get_config, get_config_path
from densedet.model_zoo.configs import list_configs as list
from densedet.model_zoo.entries import ModelEntry, get_model, list_models

__all__ = [
    "ModelEntry",
    "config_root",
    "get_config",
    "get_config_path",
    "get_model",
    "list",
    "list_models",
]
