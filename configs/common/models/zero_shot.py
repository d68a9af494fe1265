"""Training-free segmentation from CLIP's dense map (MaskCLIP, arXiv 2112.01071), ADE20K's words."""

from detectron2.config import LazyCall as L

from densedet.clip import VocabularyEmbedder, create_visual
from densedet.modeling.meta_arch import ZeroShotSegmentor
from densedet.vocabulary import Vocabulary

clip = dict(model="ViT-B-16-quickgelu", pretrained="openai")

model = L(ZeroShotSegmentor)(
    visual=L(create_visual)(model="${clip.model}", pretrained="${clip.pretrained}"),
    vocabulary=L(Vocabulary.named)(name="ade20k_150"),
    embedder=L(VocabularyEmbedder)(
        model="${clip.model}",
        pretrained="${clip.pretrained}",
        templates="clip80",
        background=None,
    ),
    path="value",
    temperature=100.0,
    window=448,
    window_stride=224,
    min_probability=None,  # 0.5: the prompt denoising of MaskCLIP
)
