"""RetinaNet on a CLIP ResNet-50, all of it trained: the CLIP-only baseline of DenseCLIP."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from densedet.clip import create_aligned_visual
from densedet.modeling.backbone import AlignedResNet
from densedet.modeling.retinanet import P6P7

from ..clip_statistics import pixel_mean, pixel_std

# `grid`: side of the position table, of images up to 32 x 42 = 1344 pixels
clip = dict(
    model="RN50-quickgelu", pretrained="openai", embed_dim=1024, grid=42, positions="bilinear"
)

model = model_zoo.get_config("common/models/retinanet.py").model
model.backbone.bottom_up = L(AlignedResNet)(
    visual=L(create_aligned_visual)(
        model="${clip.model}",
        pretrained="${clip.pretrained}",
        grid="${clip.grid}",
        positions="${clip.positions}",
    ),
    aligned=False,
)
# no ReLU between P6 and P7; Detectron2's has one (relu=True)
model.backbone.top_block = L(P6P7)(in_channels=2048, relu=False)
model.update(input_format="RGB", pixel_mean=pixel_mean, pixel_std=pixel_std)
