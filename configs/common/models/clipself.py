"""CLIPSelf (arXiv 2310.01403): EVA02-CLIP-B/16, all 12 blocks train, pictures of 1024 pixels."""

from detectron2.config import LazyCall as L

from densedet.clip import create_visual
from densedet.engine.interpolation import WeightInterpolation
from densedet.modeling.meta_arch import CLIPSelf

clip = dict(model="EVA02-B-16", pretrained="merged2b_s8b_b131k", stride=16)

model = L(CLIPSelf)(
    student=L(create_visual)(model="${clip.model}", pretrained="${clip.pretrained}"),
    teacher=None,  # a copy of the student
    student_size="${dataloader.image_size}",
    crop_size=None,  # native: 224
    trainable=12,
    crop_padding="centre",
    crop_backend="auto",
    teacher_cache=None,
    checkpointing=False,
    modes="${dataloader.evaluator.modes}",
)

# for train.hooks: what is evaluated and exported, 0.7 x student + 0.3 x teacher
interpolation = L(WeightInterpolation)(
    alpha=0.7,
    export=dict(
        model="${clip.model}", pretrained="${clip.pretrained}", file_name="clipself.safetensors"
    ),
)
