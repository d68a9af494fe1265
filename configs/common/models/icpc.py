"""ICPC (arXiv 2308.07078) for a DenseCLIP model; only its abstract was at hand, the rest is ours.

Prompts that look at the image, an align-guided contrastive loss, scores at several strides. The
recipe is DenseCLIP's with batches of 16 and gradients clipped. What a row of the ablation changes
is one line on the command, see projects/icpc/README.md.
"""

from detectron2.config import LazyCall as L

from densedet.data.semantic_benchmarks import ADE20K_FULL_IGNORED, ade20k_full_vocabulary
from densedet.modeling.guidance import ICPC, AlignGuidedContrast, PromptCondition


def condition(model, level_channels, dense_level):
    """Replace the guidance of DenseCLIP; its decoder, after the text tower, goes."""
    guided = model.backbone.bottom_up
    before = guided.guidance
    guided.guidance = L(ICPC)(
        text=before.text,
        condition=L(PromptCondition)(
            mode="add", embed_dim="${clip.embed_dim}", width=512, reduction=16, detach=False
        ),
        auxiliary=before.auxiliary,
        contrast=L(AlignGuidedContrast)(
            mode="t2p+p2p",
            temperature=0.1,
            weight=0.1,
            num_positives=32,
            num_negatives=256,
            min_pixels=4,
            max_anchors=1024,
        ),
        decoder=None,
        embed_dim="${clip.embed_dim}",
        levels=["res3", "res4", "res5"],
        dense_level=dense_level,
        level_channels=level_channels,
        fuse="concat",
        temperature=0.07,
        contrast_start_iter=5000,
    )


def use_recipe(dataloader, optimizer, train):
    """Batches of 16 at DenseCLIP's rate for 32, no decay of norms, gradients clipped to 1."""
    dataloader.train.total_batch_size = 16
    optimizer.params.update(weight_decays=None, weight_decay_norm=0.0)
    train.clip_grad = dict(max_norm=1.0, norm_type=2.0)


def use_coco_stuff(model):
    """The 171 classes of COCO-Stuff10k."""
    model.sem_seg_head.num_classes = 171
    model.backbone.bottom_up.guidance.text.vocabulary.name = "coco_stuff_171"


def use_ade20k_full(model, train):
    """The 847 classes of ADE20K-Full, of which some names are long; 160,000 iterations."""
    model.sem_seg_head.update(num_classes=847, ignore_value=ADE20K_FULL_IGNORED)
    guidance = model.backbone.bottom_up.guidance
    guidance.auxiliary.ignore_value = ADE20K_FULL_IGNORED
    guidance.text.update(
        vocabulary=L(ade20k_full_vocabulary)(), class_tokens=16, checkpointing=True
    )
    train.max_iter = 160000
    train.eval_period = train.checkpointer.period = 16000
