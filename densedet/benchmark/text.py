"""``text``: prompts of every image, their common beginning encoded once against once per class.

Contexts that look at the image (pre-model prompting in DenseCLIP, arXiv 2112.01518, and our
guidance after ICPC, arXiv 2308.07078) need the text tower for every image. Start token and contexts
are the same for all classes of an image; the reference runs over them again for every class.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from densedet.benchmark.defaults import TEXT_BATCH, TEXT_MODEL, TEXT_VOCABULARY
from densedet.benchmark.machine import Settings, positive
from densedet.benchmark.timing import SIDES, compare, row, time_in_turn
from densedet.clip import create_text_encoder
from densedet.data.loader import seeded
from densedet.engine.flops import FlopCounter
from densedet.modeling.guidance import PromptedTextEncoder
from densedet.vocabulary import Vocabulary


@dataclass(frozen=True)
class TextJob:
    """What is encoded.

    Attributes:
        settings: device, precision, repeats, ...
        model: CLIP whose text tower it is; its weights are random.
        vocabulary: name of a class list, whose names have at most 3 tokens.
        batch: images, each with contexts of its own.

    Raises:
        ConfigError: the batch is below 1.
    """

    settings: Settings
    model: str = TEXT_MODEL
    vocabulary: str = TEXT_VOCABULARY
    batch: int = TEXT_BATCH

    def __post_init__(self) -> None:
        positive(batch=self.batch)

    def build(self) -> PromptedTextEncoder:
        """The text side with random weights, always the same ones, on torch's default device.

        Raises:
            ConfigError: there is no such CLIP, or no such class list.
            VocabularyError: a name is too long.
        """
        vocabulary = Vocabulary.named(self.vocabulary)
        with seeded(0):
            return PromptedTextEncoder(create_text_encoder(self.model), vocabulary).eval()


def run_text(job: TextJob) -> dict[str, Any]:
    """Count the multiply-adds of both sides, and time them in turn on one tower.

    Returns:
        {"macs_ratio": ours / reference; "time_ratio": the same of the forward pass without
        gradient, the median over the turns; "training_time_ratio": of forward and backward;
        "macs": of each side; "forward", "forward_backward": see :func:`compare`;
        "largest_difference": between the embeddings of the two; "largest_embedding"; "prompts";
        "batch", "model", "vocabulary"}.
    """
    settings, device = job.settings, job.settings.torch_device
    macs = count_macs(job)
    text = job.build().to(device)
    if settings.compile:
        text.compile()
    contexts = text.contexts.detach().repeat(job.batch, 1, 1)
    generator = torch.Generator().manual_seed(0)
    contexts += 0.1 * torch.randn(contexts.shape, generator=generator).to(device)

    @torch.no_grad()
    def forward(share: bool) -> Tensor:
        text.share_prefix = share
        with settings.autocast():
            return text(contexts)

    def forward_backward(share: bool) -> None:
        text.share_prefix = share
        with settings.autocast():
            embeddings = text(contexts.requires_grad_())
        torch.autograd.grad(embeddings.float().square().sum(), contexts)

    ours, reference = forward(True).float(), forward(False).float()
    times = {
        name: _time(action, settings)
        for name, action in (("forward", forward), ("forward_backward", forward_backward))
    }
    return {
        "macs_ratio": macs["ours"] / macs["reference"],
        "time_ratio": 1 / times["forward"]["speedup"],
        "training_time_ratio": 1 / times["forward_backward"]["speedup"],
        "macs": macs,
        **times,
        "largest_difference": float((ours - reference).abs().max()),
        "largest_embedding": float(reference.abs().max()),
        "prompts": len(text.groups),
        "batch": job.batch,
        "model": job.model,
        "vocabulary": job.vocabulary,
    }


def count_macs(job: TextJob) -> dict[str, int]:
    """Multiply-adds of one image's prompts, for each side."""
    counts = {}
    with torch.device("meta"), torch.no_grad():
        text = job.build()
        for name, share in zip(SIDES, (True, False), strict=True):
            text.share_prefix = share
            with FlopCounter() as counter:
                text(text.contexts)
            counts[name] = counter.total
    return counts


def _time(action: Any, settings: Settings) -> dict[str, Any]:
    sides = {"ours": lambda: action(True), "reference": lambda: action(False)}
    times = time_in_turn(sides, settings.torch_device, settings.repeats, settings.warmup)
    return compare(times["ours"], times["reference"])


def text_rows(result: dict[str, Any]) -> list[list[str]]:
    """The lines of the table: what, ours, reference, ratio."""
    macs = {side: count / 1e9 for side, count in result["macs"].items()}
    rows = [row("multiply-adds an image", macs, "{:.3g} G", f"{1 / result['macs_ratio']:.2f}")]
    for what in ("forward", "forward_backward"):
        seconds = {side: result[what][side]["median_s"] / result["batch"] for side in SIDES}
        ratio = f"{result[what]['speedup']:.2f}"
        rows.append(row(f"{what.replace('_', ' + ')}, an image", seconds, "{:.3g} s", ratio))
    return rows
