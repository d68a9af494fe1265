"""The models that have a short name: where their weights come from, and what is known of them."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densedet.errors import CheckpointError, ConfigError
from densedet.model_zoo.configs import config_root

Statistics = tuple[float, float, float]

CLIP_MEAN: Statistics = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Statistics = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ModelEntry:
    """One model of the zoo. None stands for what is not known or does not apply.

    Attributes:
        name: the short name.
        what: one line.
        clip: architecture of its CLIP, see `densedet.clip.create_clip`.
        pretrained: weights of that CLIP: "shipped" with densedet, or a tag of open_clip.
        licence: of the weights.
        source: who made them: a page, or a command of this checkout.
        config: name of the config in the model zoo; None for a CLIP alone.
        weights: file that ``source`` writes, relative to the working folder; None for a model that
            has nothing but its CLIP.
        url: of a file with the weights.
        sha256: hex, of the file at ``url`` or of the shipped file.
        pixel_mean: RGB in 0..1.
        pixel_std: RGB in 0..1.
        metrics: expected figures in percent, by name.
        command: what measures them.
    """

    name: str
    what: str
    clip: str
    pretrained: str
    licence: str
    source: str
    config: str | None = None
    weights: str | None = None
    url: str | None = None
    sha256: str | None = None
    pixel_mean: Statistics = CLIP_MEAN
    pixel_std: Statistics = CLIP_STD
    metrics: tuple[tuple[str, float], ...] = ()
    command: str | None = None

    def weights_file(self) -> Path | None:
        """The trained weights, from the working folder or else the checkout; None if it has none.

        Raises:
            CheckpointError: they are in neither; the message has the command that makes them.
        """
        if self.weights is None:
            return None
        places = [Path(self.weights), config_root() / self.weights]
        for file in places:
            if file.is_file():
                return file
        raise CheckpointError(
            f"the model {self.name!r} is not trained yet: there is no {self.weights} in this "
            f"folder; run `{self.source}` in the checkout"
        )


def _tiny(name: str, what: str, source: str, **known: Any) -> ModelEntry:
    return ModelEntry(name, what, "densedet-tiny", "shipped", "Apache-2.0", source, **known)


def _eva(name: str, what: str, clip: str, tag: str) -> ModelEntry:
    source = "https://github.com/baaivision/EVA (arXiv 2303.15389)"
    return ModelEntry(name, what, clip, tag, "MIT", source)


def _openai(name: str, what: str, clip: str, file: str) -> ModelEntry:
    """OpenAI's addresses have the sha256 of the file before its name."""
    return ModelEntry(
        name,
        what,
        clip,
        "openai",
        licence="MIT",
        source="https://github.com/openai/CLIP (arXiv 2103.00020)",
        url=f"https://openaipublic.azureedge.net/clip/models/{file}",
        sha256=file.partition("/")[0],
    )


_ENTRIES = (
    _tiny(
        "densedet-tiny",
        "CLIP of 48 px that knows Shapes World alone",
        "python tools/pretrain_clip.py --threads 1",
        sha256="8d2a50194d9b8f65ae50e60e310d8e70ed98f7503a88a9cf42208ef422091579",
        metrics=(("top-1 of crops among 64 things", 93.7),),
        command="python tools/pretrain_clip.py --eval-only",
    ),
    _tiny(
        "quickstart",
        "open-vocabulary Mask R-CNN on the tiny CLIP after CLIPSelf, Shapes World",
        "make demo",
        config="projects/clipself/configs/quickstart_detector.py",
        weights="output/quickstart/clipself/model_final.pth",
        metrics=(
            ("AP50 seen box", 83.2),
            ("AP50 unseen box", 50.7),
            ("AP50 seen mask", 81.3),
            ("AP50 unseen mask", 52.2),
        ),
        command="make demo",
    ),
    _tiny(
        "quickstart-panoptic",
        "open-vocabulary Panoptic FPN on the tiny CLIP after CLIPSelf, Shapes World",
        "make demo",
        config="projects/panoptic_fpn/configs/quickstart_clipself.py",
        weights="output/quickstart/panoptic/model_final.pth",
        metrics=(("PQ seen", 58.6), ("PQ unseen", 25.1), ("PQ stuff", 80.9)),
        command="make demo",
    ),
    _tiny(
        "quickstart-zero-shot",
        "semantic segmentation from the dense map of the tiny CLIP, without training",
        "densedet-tiny",
        config="projects/panoptic_fpn/configs/quickstart_zero_shot.py",
        metrics=(("mIoU", 2.1),),
        command="make demo",
    ),
    _eva("eva02-b16", "EVA02-CLIP-B/16", "EVA02-B-16", "merged2b_s8b_b131k"),
    _eva("eva02-l14-336", "EVA02-CLIP-L/14, 336 px", "EVA02-L-14-336", "merged2b_s6b_b61k"),
    _openai(
        "openai-vitb16",
        "CLIP ViT-B/16",
        "ViT-B-16-quickgelu",
        "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt",
    ),
    _openai(
        "openai-rn50",
        "CLIP ResNet-50",
        "RN50-quickgelu",
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
    ),
    _openai(
        "openai-rn101",
        "CLIP ResNet-101",
        "RN101-quickgelu",
        "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599/RN101.pt",
    ),
)


def list_models() -> list[str]:
    """The short names of all models, those of this project first."""
    return [entry.name for entry in _ENTRIES]


def get_model(name: str) -> ModelEntry:
    """What is known of a model.

    Args:
        name: one of :func:`list_models`.

    Raises:
        ConfigError: there is no such model; the message names close matches.
    """
    for entry in _ENTRIES:
        if entry.name == name:
            return entry
    close = difflib.get_close_matches(name, list_models(), n=3, cutoff=0.5)
    raise ConfigError(
        f"no model {name!r} in densedet's model zoo; "
        f"{'did you mean' if close else 'there are'} {', '.join(close or list_models())}"
    )
