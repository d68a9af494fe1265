"""The panoptic quickstart on a CLIP that CLIPSelf distilled (projects/clipself).

As in projects/clipself/configs/quickstart_detector.py its levels come from three blocks, and the
dense map takes part in the scores of unseen classes, here pooled over the masks of segments.
"""

from detectron2.config import LazyCall as L

from densedet.modeling.mask_ensemble import MaskEnsemble

from .quickstart import clip, dataloader, lr_multiplier, model, optimizer, train

pyramid = model.backbone.bottom_up
pyramid.in_features = ["block0", "block1", "block2"]
pyramid.bottom_up.update(out_features=["block0", "block1", "block2"], dense=True)
pyramid.bottom_up.visual.pretrained = "output/quickstart/distil/clipself.safetensors"
# 27: the factor that this CLIP learned for its cosines
model.mask_ensemble = L(MaskEnsemble)(seen=0.0, unseen=0.65, temperature=27.0)
train.output_dir = "output/quickstart/panoptic"
