"""The quickstart detector on the CLIP of quickstart.py.

Its levels come from three blocks instead of the first alone, and the dense map takes part in the
scores of unseen classes: see quickstart_fold0.py.
"""

from detectron2.config import LazyCall as L

from densedet.modeling.roi_heads import ScoreEnsemble

from ...fvit.configs.quickstart import clip, dataloader, lr_multiplier, model, optimizer, train

pyramid = model.backbone.bottom_up
pyramid.in_features = ["block0", "block1", "block2"]
pyramid.bottom_up.update(out_features=["block0", "block1", "block2"], dense=True)
pyramid.bottom_up.visual.pretrained = "output/quickstart/distil/clipself.safetensors"
# 27: the factor that this CLIP learned for its cosines
model.roi_heads.box_predictor.ensemble = L(ScoreEnsemble)(seen=0.0, unseen=0.65, temperature=27.0)
train.output_dir = "output/quickstart/clipself"
