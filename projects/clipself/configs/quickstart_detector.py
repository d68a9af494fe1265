"""The quickstart detector on the CLIP of quickstart.py; its dense map takes part in the scores."""

from detectron2.config import LazyCall as L

from densedet.modeling.roi_heads import ScoreEnsemble

from ...fvit.configs.quickstart import clip, dataloader, lr_multiplier, model, optimizer, train

backbone = model.backbone.bottom_up.bottom_up
backbone.visual.pretrained = "output/quickstart/distil/clipself.safetensors"
backbone.dense = True
model.roi_heads.box_predictor.ensemble = L(ScoreEnsemble)(seen=0.35, unseen=0.65, temperature=27.0)
train.output_dir = "output/quickstart/clipself"
