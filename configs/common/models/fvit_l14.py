"""Changes that turn F-ViT B/16 into L/14-336: strides 3.5 to 28, images of 896 pixels."""

from omegaconf import DictConfig


def use_l14(model: DictConfig, clip: DictConfig) -> None:
    """Change a model of `fvit.py` (with or without masks) and its `clip` in place."""
    clip.update(model="EVA02-L-14-336", pretrained="merged2b_s6b_b61k", embed_dim=768)
    strides = [3.5, 7.0, 14.0, 28.0]
    model.backbone.bottom_up.bottom_up.out_features = ["block6", "block10", "block14", "block23"]
    anchors = model.proposal_generator.anchor_generator
    anchors.strides = [*strides, 56.0]
    anchors.sizes = [[8 * stride] for stride in anchors.strides]
    model.roi_heads.dense_stride = 14
    model.roi_heads.box_pooler.strides = strides
    if "mask_pooler" in model.roi_heads:
        model.roi_heads.mask_pooler.strides = strides
