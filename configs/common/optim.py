# AdamW on the parameters that are not frozen. `params.model` is filled in by the trainer.
import torch
from detectron2.config import LazyCall as L

from densedet.engine.optim import MuonAdamW as MuonAdamWOptimizer
from densedet.engine.optim import get_parameters, muon_parameters

AdamW = L(torch.optim.AdamW)(
    params=L(get_parameters)(
        # None: the decay of the optimizer; weight_decay_1d covers biases, norms and scalars
        weight_decay_norm=None,
        weight_decay_bias=None,
        weight_decay_1d=None,
        # regular expression on the full name -> factor of the rate, weight decay
        base_lr="${..lr}",
        lr_factors=None,
        weight_decays=None,
    ),
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=0.1,
)
# Muon on the weight matrices of the blocks, AdamW on the rest
MuonAdamW = L(MuonAdamWOptimizer)(
    params=L(muon_parameters)(blocks="resblocks", weight_decay_1d=None),
    lr=1e-3,
    muon_lr=0.02,
    weight_decay=0.0,
)
