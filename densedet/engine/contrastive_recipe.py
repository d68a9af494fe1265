"""Settings of the contrastive pretraining; no heavy import, so that the tool says its defaults."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ContrastiveRecipe:
    """Settings of the pretraining; the defaults made the shipped weights.

    Attributes:
        iterations: optimisation steps; every step sees new pairs.
        batch_size: pairs a step.
        muon_lr: learning rate of Muon on the matrices of the transformer blocks.
        adamw_lr: learning rate of AdamW on everything else.
        weight_decay: of both optimisers.
        warmup: steps of linear warm-up; cosine decay to ``final_lr`` times the rate follows.
        final_lr: last learning rate as a fraction of the first.
        clip_norm: largest global gradient norm.
        logit_scale: initial factor of the cosine similarities.
        seed: of the weights, the pairs and the augmentation.
    """

    iterations: int = 6000
    batch_size: int = 64
    muon_lr: float = 0.02
    adamw_lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: int = 40
    final_lr: float = 0.02
    clip_norm: float = 1.0
    logit_scale: float = 20.0
    seed: int = 0
