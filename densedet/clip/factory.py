"""Making CLIP models by name: open_clip's architectures, densedet's own, and their weights."""

import difflib
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import open_clip
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from densedet.clip.activation import check_activation, check_activation_of_tag, quick_name
from densedet.clip.checkpoints import read_stored
from densedet.clip.eva import EvaVisual
from densedet.clip.position import PositionMode
from densedet.clip.resnet import ResNetVisual
from densedet.clip.text import TextEncoder
from densedet.clip.tiny import build_tiny_clip, read_model_config, shipped_models
from densedet.clip.visual import ClipVisual
from densedet.clip.vit import VitVisual
from densedet.errors import CheckpointError, ConfigError
from densedet.weights import StateDict, file_digest, load_strictly, require_file

SHIPPED = "shipped"
_SUFFIXES = (".pt", ".pth", ".bin", ".safetensors", ".ckpt")
_SCHEMAS = ("hf-hub:", "local-dir:")  # of open_clip


def create_clip(model: str, pretrained: str | None = None) -> Any:
    """Make a whole CLIP.

    Args:
        model: an architecture of open_clip ("EVA02-B-16", "ViT-B-16-quickgelu", ...), also in
            OpenAI's spelling ("ViT-B/16", see :func:`resolve_architecture`), or one that densedet
            ships ("densedet-tiny").
        pretrained: None for random weights; "shipped" for the weights in densedet; a file (see
            :func:`densedet.clip.checkpoints.read_state_dict`), which must hold the whole model; or
            a tag of open_clip, downloaded on first use.

    Returns:
        The open_clip model, in eval mode, fp32, on the CPU (or the default device).

    Raises:
        ConfigError: there is no such architecture, or densedet cannot use it.
        CheckpointError: the weights are missing, cannot be read, belong to another model, or were
            trained with another activation.
    """
    model = resolve_architecture(model, pretrained)
    file = weights_file(model, pretrained)
    if file is None and pretrained is not None:
        return _from_tag(model, pretrained)
    clip_model = build_tiny_clip(_model_config(model))
    if file is not None:
        load_checkpoint(clip_model, file, model)
    return clip_model.eval()


def create_visual(model: str, pretrained: str | None = None) -> ClipVisual:
    """Make the image tower alone; a file needs to hold only the image tower.

    Arguments and errors are those of :func:`create_clip`.
    """
    model = resolve_architecture(model, pretrained)
    file = weights_file(model, pretrained)
    if file is None and pretrained is not None:
        return build_visual(_from_tag(model, pretrained, image_only=True)).eval()
    clip_model = create_clip(model)
    if file is None:
        return build_visual(clip_model).eval()
    stored = read_stored(file)
    check_activation(clip_model.visual, stored, file, model)
    state = _below(stored.widened, "visual.")
    load_strictly(clip_model.visual, state, source=f"{file} (image tower)")
    return build_visual(clip_model).eval()


def create_aligned_visual(
    model: str,
    pretrained: str | None = None,
    *,
    grid: int | None = None,
    positions: PositionMode = "bilinear",
    double_class_embedding: bool = False,
) -> ClipVisual:
    """Make the image tower of a ViT or ResNet in the form of DenseCLIP (arXiv 2112.01518).

    Args:
        model: as for :func:`create_clip`.
        pretrained: as for :func:`create_visual`.
        grid: rows and columns that the position table is resized to after loading, bilinearly;
            None keeps the table.
        positions: how the table comes to the size of an image.
        double_class_embedding: see :class:`densedet.clip.vit.VitVisual`; ViT only.

    Returns:
        The tower, in eval mode.

    Raises:
        ConfigError: as for :func:`create_clip`, or the tower is of another family.
        CheckpointError: as for :func:`create_clip`.
    """
    visual = create_visual(model, pretrained)
    if not isinstance(visual, VitVisual | ResNetVisual):
        raise ConfigError(f"{model} is neither a ViT nor a ResNet: its positions cannot be set")
    visual.positions = positions
    if isinstance(visual, VitVisual):
        visual.double_class_embedding = double_class_embedding
    elif double_class_embedding:
        raise ConfigError(f"{model} has no class embedding: double_class_embedding is for a ViT")
    if grid is not None:
        visual.resize_positions(grid)
    return visual


def create_text_encoder(model: str, pretrained: str | None = None) -> TextEncoder:
    """Make the text tower alone; a file needs to hold only the text tower.

    Arguments and errors are those of :func:`create_clip`.
    """
    model = resolve_architecture(model, pretrained)
    file = weights_file(model, pretrained)
    if file is None:
        return build_text_encoder(create_clip(model, pretrained)).eval()
    encoder = build_text_encoder(create_clip(model))
    stored = read_stored(file)
    check_activation(encoder, stored, file, model)
    state = stored.widened
    state = _below(state, "text.") or state
    text = {k: v for k, v in state.items() if not k.startswith(("visual.", "logit_"))}
    load_strictly(encoder, text, source=f"{file} (text tower)")
    return encoder.eval()


def build_visual(clip_model: nn.Module) -> ClipVisual:
    """Wrap the image tower of an open_clip model, sharing its modules.

    Raises:
        ConfigError: the tower is of no supported family (EVA in timm, ViT, ModifiedResNet).
    """
    tower = clip_model.visual
    if isinstance(tower, TimmModel):
        return EvaVisual(tower)
    if isinstance(tower, VisionTransformer):
        return VitVisual(tower)
    if isinstance(tower, ModifiedResNet):
        return ResNetVisual(tower)
    raise ConfigError(f"unsupported CLIP image tower: {type(tower).__name__}")


def build_text_encoder(clip_model: nn.Module) -> TextEncoder:
    """Wrap the text tower of an open_clip model, sharing its modules."""
    return TextEncoder(clip_model)


def load_checkpoint(
    clip_model: nn.Module, path: str | os.PathLike[str], model: str = "this model"
) -> None:
    """Load a file of any supported format into a whole open_clip model.

    Args:
        clip_model: the receiver.
        path: the file.
        model: the name of the architecture, for messages.

    Raises:
        CheckpointError: the file cannot be read, does not fit, or was trained with another
            activation; then nothing is loaded.
    """
    stored = read_stored(path)
    state = match_text_layout(clip_model, stored.widened)
    check_activation(clip_model, stored, path, model)
    load_strictly(clip_model, state, source=path)


def match_text_layout(clip_model: nn.Module, state: Mapping[str, Tensor]) -> StateDict:
    """Move the text tower's keys to where the model has them: top level, or under ``text.``."""
    custom = hasattr(clip_model, "text")
    if custom and "token_embedding.weight" in state:
        shared = ("visual.", "logit_")
        return {k if k.startswith(shared) else f"text.{k}": v for k, v in state.items()}
    if not custom:
        return {k.removeprefix("text."): v for k, v in state.items()}
    return dict(state)


def weights_file(model: str, pretrained: str | None) -> Path | None:
    """The local file that ``pretrained`` means, or None (random weights, or an open_clip tag).

    Raises:
        CheckpointError: "shipped" weights that are not there, or a path that leads nowhere.
    """
    if pretrained is None:
        return None
    if pretrained == SHIPPED:
        file = Path(str(resources.files("densedet.clip") / "resources" / f"{model}.safetensors"))
        if not file.is_file():
            raise CheckpointError(
                f"densedet ships no weights of {model!r} ({file.name} is not in its resources); "
                "give a checkpoint file or an open_clip tag"
            )
        return file
    if pretrained.startswith(_SCHEMAS):
        raise CheckpointError(_no_schema(pretrained))
    path = Path(os.path.expanduser(pretrained))
    if path.is_file():
        return path
    if path.exists() and not path.is_dir():
        require_file(path)
    if os.sep in pretrained or "/" in pretrained or path.suffix in _SUFFIXES:
        raise CheckpointError(f"{pretrained}: no such checkpoint file; check the path")
    return None


def weights_identity(model: str, pretrained: str | None) -> str | None:
    """A key of the weights that is known without building the model; None for random weights."""
    if pretrained is None:
        return None
    model = resolve_architecture(model, pretrained)
    file = weights_file(model, pretrained)
    return f"tag:{model}:{pretrained}" if file is None else f"sha256:{file_digest(file)}"


def resolve_architecture(model: str, pretrained: str | None = None) -> str:
    """The architecture of open_clip that a name means.

    Names with a slash are in OpenAI's spelling: "ViT-B/16" is "ViT-B-16", and with a tag whose
    weights were trained with QuickGELU, such as "openai", it is "ViT-B-16-quickgelu".

    Raises:
        ConfigError: the name has open_clip's prefix of a repository or a folder.
    """
    if model.startswith(_SCHEMAS):
        raise ConfigError(_no_schema(model))
    name = model.replace("/", "-").replace("@336px", "-336")
    quick = quick_name(name) if name != model else ""
    return quick if quick and pretrained in open_clip.list_pretrained_tags_by_model(quick) else name


def _no_schema(name: str) -> str:
    return (
        f"{name}: repositories and folders of open_clip are not read by name; give an architecture "
        "and the file of weights: create_clip('ViT-B-32', 'FOLDER/open_clip_model.safetensors')"
    )


def _model_config(model: str) -> dict[str, Any]:
    if model in shipped_models():
        return read_model_config(model)
    config = open_clip.get_model_config(model)
    if config is None:
        known = [*shipped_models(), *open_clip.list_models()]
        near = difflib.get_close_matches(model, known, n=4, cutoff=0.4)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise ConfigError(f"no CLIP architecture named {model!r}{hint}")
    if "multimodal_cfg" in config or "hf_model_name" in config["text_cfg"]:
        raise ConfigError(f"{model}: CoCa and Hugging Face text towers are not supported")
    return config


def _from_tag(model: str, tag: str, image_only: bool = False) -> Any:
    _model_config(model)
    tags = open_clip.list_pretrained_tags_by_model(model)
    if tag not in tags:
        raise CheckpointError(
            f"no weights {tag!r} of {model}: neither a file nor one of open_clip's tags "
            f"({', '.join(tags) or 'there are none'})"
        )
    check_activation_of_tag(model, tag, image_only)
    try:
        return open_clip.create_model(model, pretrained=tag).eval()
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"the weights {tag!r} of {model} could not be downloaded or read ({reason}); "
            "without network, give the path of a local checkpoint file instead of the tag"
        ) from error


def _below(state: Mapping[str, Tensor], prefix: str) -> StateDict:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
