"""The configs of this project by name, from a checkout and from an installed wheel alike.

>>> from densedet import model_zoo
>>> model_zoo.list()                                               # doctest: +SKIP
['projects/fvit/configs/ov_coco_eva_b16.py', ...]
>>> cfg = model_zoo.get_config("projects/fvit/configs/quickstart.py")  # doctest: +SKIP
"""

from densedet.model_zoo.configs import config_root, get_config, get_config_path
from densedet.model_zoo.configs import list_configs as list

__all__ = ["config_root", "get_config", "get_config_path", "list"]
