"""Released checkpoints of DenseCLIP (arXiv 2112.01518), in both directions of naming.

They are files of mmcv: a dict with ``meta`` and ``state_dict``. Every weight has its place in
densedet's `Segmentor`, `GuidedRetinaNet` or `GuidedRCNN`; nothing is dropped or made up. The
weights mean what they did only under the switches of the published code, which the configs
``projects/denseclip/configs/*_released.py`` set.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from densedet.clip.checkpoints import require_suffix
from densedet.errors import CheckpointError, ConfigError
from densedet.modeling.backbone.guided import find_guided
from densedet.modeling.denseclip_names import (
    ANCHORS,
    GUIDANCE,
    from_released,
    not_denseclip,
    to_released,
)
from densedet.vocabulary import Vocabulary
from densedet.vocabulary.category import prompt_key
from densedet.weights import (
    PathLike,
    StateDict,
    abbreviated,
    fit_strictly,
    is_torchscript,
    read_torch_file,
    require_file,
    write_torch_file,
)

__all__ = [
    "ReleasedCheckpoint",
    "convert_released",
    "from_released",
    "guided_vocabulary",
    "read_released",
    "to_released",
    "write_released",
]


@dataclass(frozen=True)
class ReleasedCheckpoint:
    """What a released file holds.

    Attributes:
        state: released names -> CPU tensors.
        classes: the names of the K classes in the order of the channels; empty if the file does not
            say.
    """

    state: StateDict
    classes: tuple[str, ...] = ()


def read_released(path: PathLike) -> ReleasedCheckpoint:
    """Read a checkpoint of mmcv as data: its weights and class names; nothing else is kept.

    Raises:
        CheckpointError: the file is missing, truncated, needs code to be read, or is no such file.
    """
    require_file(path)
    if is_torchscript(path):
        raise CheckpointError(not_denseclip(path, "a TorchScript archive, as OpenAI releases CLIP"))
    content = read_torch_file(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(not_denseclip(path, "a file without named weights"))
    odd = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise CheckpointError(not_denseclip(path, f"with no tensors under {abbreviated(odd)}"))
    meta = content.get("meta")
    names = meta.get("CLASSES") if isinstance(meta, Mapping) else None
    weights = {str(name): tensor for name, tensor in state.items()}
    return ReleasedCheckpoint(weights, tuple(map(str, names or ())))


def convert_released(path: PathLike, model: nn.Module) -> StateDict:
    """Read a released checkpoint for a model; every entry is used and every weight is found.

    Args:
        path: the file.
        model: what it is for (may be on "meta"); it is not changed.

    Returns:
        The names of ``model`` -> CPU tensors.

    Raises:
        ConfigError: the model has no guidance.
        CheckpointError: the file cannot be read, or is of another model or other classes.
    """
    vocabulary = guided_vocabulary(model)
    released = read_released(path)
    state = from_released(released.state, path)
    if not any(name.startswith(GUIDANCE) for name in state):
        raise CheckpointError(
            f"{path}: holds neither text tower nor context decoder, like a CLIP-only baseline; "
            "only checkpoints of DenseCLIP itself are converted"
        )
    _check_classes(path, released, vocabulary)
    return fit_strictly(model, state, path)


def write_released(
    path: PathLike, state: Mapping[str, Tensor], vocabulary: Vocabulary, source: object
) -> None:
    """Write weights in the released format: ``meta`` with the class names, and ``state_dict``.

    Args:
        path: a .pth file, written atomically.
        state: densedet's names -> tensors.
        vocabulary: its first synonyms become ``CLASSES``: they are what is prompted.
        source: as for `to_released`.

    Raises:
        ConfigError: the path has another suffix.
        CheckpointError: the published code has no place for a weight.
        OutputError: the file cannot be written.
    """
    require_suffix(path, ".pth")
    names = tuple(category.synonyms[0] for category in vocabulary)
    content = {"meta": {"CLASSES": names}, "state_dict": to_released(state, source)}
    write_torch_file(path, content)


def guided_vocabulary(model: nn.Module) -> Vocabulary:
    """The vocabulary of a model's guidance; ConfigError if it has none."""
    guided = find_guided(model)
    if guided is None:
        raise ConfigError(
            f"the config's {type(model).__name__} has no guidance: take the config of a DenseCLIP, "
            "e.g. projects/denseclip/configs/ade20k_rn50_denseclip_released.py"
        )
    return guided.guidance.vocabulary


def _check_classes(path: PathLike, released: ReleasedCheckpoint, vocabulary: Vocabulary) -> None:
    remedy = "give the config the classes of the checkpoint, in their order"
    count = _class_count(released.state)
    if count not in (None, len(vocabulary)):
        raise CheckpointError(
            f"{path}: for {count} classes {_examples(released.classes)}, the config's vocabulary "
            f"has {len(vocabulary)} {_examples(vocabulary.labels)}; {remedy}"
        )
    for index, (name, category) in enumerate(zip(released.classes, vocabulary, strict=False)):
        if prompt_key(name) not in map(prompt_key, (category.label, *category.synonyms)):
            raise CheckpointError(
                f"{path}: its class {index} is {name.strip()!r}, that of the config's vocabulary "
                f"is {category.synonyms[0]!r}; {remedy}"
            )


def _class_count(state: Mapping[str, Tensor]) -> int | None:
    """K by the bias of the classifier, None without; that of RoIs has one for the background."""
    for name, per_class, others in (
        ("decode_head.conv_seg.bias", 1, 0),
        ("bbox_head.retina_cls.bias", ANCHORS, 0),
        ("roi_head.bbox_head.fc_cls.bias", 1, 1),
    ):
        if name in state:
            return state[name].numel() // per_class - others
    return None


def _examples(names: Iterable[str]) -> str:
    names = [name.strip() for name in names]
    return f"({abbreviated(names, 3)})" if names else ""
