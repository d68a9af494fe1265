"""``guidance``: evaluation of DenseCLIP with kept text embeddings against recomputed ones.

The text embeddings depend on the words and the weights alone, so in evaluation they are computed
once. The reference is the same model that runs its text tower again for every image, over every
prompt whole, as the published code of DenseCLIP (arXiv 2112.01518) does.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from densedet.benchmark.defaults import GUIDANCE_CONFIG
from densedet.benchmark.machine import Settings, positive
from densedet.benchmark.timing import SIDES, compare, row, time_in_turn
from densedet.data.loader import seeded
from densedet.engine.analysis import without_weights
from densedet.engine.config import build, load_config
from densedet.errors import ConfigError
from densedet.modeling.guidance import PromptedTextEncoder
from densedet.modeling.meta_arch import Segmentor


@dataclass(frozen=True)
class GuidanceJob:
    """What is evaluated on what.

    Attributes:
        settings: device, precision, repeats, ...
        config_file: of a guided `Segmentor`; its weights are random.
        image_size: side of the images, pixels.
        images: of a timed run, one after the other.

    Raises:
        ConfigError: a number is out of range.
    """

    settings: Settings
    config_file: str = GUIDANCE_CONFIG
    image_size: int = 512
    images: int = 1

    def __post_init__(self) -> None:
        positive(image_size=self.image_size, images=self.images)

    def build(self) -> tuple[Segmentor, PromptedTextEncoder]:
        """The model with random weights, always the same ones, and its text side.

        Raises:
            ConfigError: the config cannot be built, or describes another kind of model.
        """
        cfg = load_config(self.config_file)
        without_weights(cfg)
        with seeded(0):
            model = build(cfg.model, "model")
        texts = [m for m in model.modules() if isinstance(m, PromptedTextEncoder)]
        if not isinstance(model, Segmentor) or not texts:
            raise ConfigError(
                f"{self.config_file} describes no Segmentor with prompted text: use a "
                "semantic segmentation config of projects/denseclip"
            )
        return model.to(self.settings.torch_device).eval(), texts[0]


def run_guidance(job: GuidanceJob) -> dict[str, Any]:
    """Time both sides in turn, on one model and the same images.

    Returns:
        {"speedup" and the rest of :func:`compare`; "largest_difference": between the logits of
        the two; "largest_logit"; "classes", "prompts": of the vocabulary; "config_file",
        "image_size", "images"}.
    """
    settings = job.settings
    model, text = job.build()
    if settings.compile:
        for module in (model.backbone, text.encoder.transformer, model.sem_seg_head):
            module.compile()
    generator = torch.Generator().manual_seed(0)
    shape = (job.images, 3, job.image_size, job.image_size)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)

    @torch.inference_mode()
    def evaluate(recompute: bool) -> list[Tensor]:
        text.share_prefix = not recompute
        logits = []
        for image in images:
            if recompute:
                text.train().eval()  # training mode drops the embeddings
            with settings.autocast():
                logits.append(model([{"image": image}])[0]["sem_seg"].full())
        return logits

    sides = {"ours": lambda: evaluate(False), "reference": lambda: evaluate(True)}
    ours, reference = (torch.stack(sides[name]()).float() for name in SIDES)
    times = time_in_turn(sides, settings.torch_device, settings.repeats, settings.warmup)
    return {
        **compare(times["ours"], times["reference"]),
        "largest_difference": float((ours - reference).abs().max()),
        "largest_logit": float(reference.abs().max()),
        "classes": len(model.vocabulary),
        "prompts": len(text.groups),
        "config_file": job.config_file,
        "image_size": job.image_size,
        "images": job.images,
    }


def guidance_rows(result: dict[str, Any]) -> list[list[str]]:
    """The lines of the table: what, ours, reference, ratio."""
    rate = {side: result["images"] / result[side]["median_s"] for side in SIDES}
    seconds = {side: 1 / value for side, value in rate.items()}
    return [
        row("images/s", rate, "{:.3g}", f"{result['speedup']:.2f}"),
        row("an image", seconds, "{:.3g} s"),
    ]
