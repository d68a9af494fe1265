"""The RegionCLIP-style baseline of CLIPSelf (arXiv 2310.01403), EVA02-CLIP-B/16."""

from detectron2.config import LazyCall as L

from densedet.clip import VocabularyEmbedder, create_visual
from densedet.data import region_vocabulary
from densedet.modeling.meta_arch import RegionCLIP

from .clipself import clip

# the categories of the file of pseudo-labels (tools/make_region_labels.py), by ascending id
label_vocabulary = L(region_vocabulary)(name="clipself_coco_regionclip")

model = L(RegionCLIP)(
    student=L(create_visual)(model="${clip.model}", pretrained="${clip.pretrained}"),
    vocabulary="${label_vocabulary}",
    embedder=L(VocabularyEmbedder)(
        model="${clip.model}", pretrained="${clip.pretrained}", templates="clipself63"
    ),
    student_size="${dataloader.image_size}",
    crop_size=None,
    trainable=12,
    modes="${dataloader.evaluator.modes}",
)
