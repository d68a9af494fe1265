"""What a model may be asked for, and the least score of what is shown; no heavy import."""

from typing import Literal

Task = Literal["panoptic", "instance", "semantic"]
"""What a prediction holds: panoptic segments, instances, or the classes of the pixels."""

DETECTION_SCORE = 0.3
"""The least score of an instance, where none is asked for."""
