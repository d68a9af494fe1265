"""Five data sets for segmentation without training: short side 448, the whole picture in windows.

The sizes are those that CLIP-DINOiser (arXiv 2312.12359) tests with; windows of 448 with stride 224
are the model's part. No data set has a background class.
"""

from detectron2.config import LazyCall as L

from densedet.data import (
    ResizeToFit,
    SemanticMapper,
    build_test_loader,
    context_vocabulary,
    get_records,
    register_ade20k,
    register_cityscapes,
    register_coco_stuff_164k,
    register_context,
    register_voc_20,
)
from densedet.evaluation import OpenVocabularySemanticEvaluator
from densedet.vocabulary import Vocabulary


def data_set(names, register, vocabulary, num_classes):
    """An entry of ``dataloader.evaluators``."""
    return dict(
        register=[register],
        vocabulary=vocabulary,
        test=L(build_test_loader)(
            dataset=L(get_records)(names=names, filter_empty=False),
            mapper=L(SemanticMapper)(
                is_train=False,
                augmentations=[L(ResizeToFit)(long=2048, short=448)],
                num_classes=num_classes,
            ),
            num_workers=4,
        ),
        evaluator=L(OpenVocabularySemanticEvaluator)(
            dataset_name="${..test.dataset.names}", output_dir="${oc.select:train.output_dir,null}"
        ),
    )


def _words(name):
    return L(Vocabulary.named)(name=name)


_stuff = L(register_coco_stuff_164k)()
_context = (L(register_context)(classes=59), L(context_vocabulary)(classes=59))
dataloader = dict(
    evaluators=dict(
        voc_20=data_set("voc_20_val", L(register_voc_20)(), _words("voc_20"), 20),
        context_59=data_set("context_59_val", *_context, 59),
        ade20k_150=data_set("ade20k_150_val", L(register_ade20k)(), _words("ade20k_150"), 150),
        cityscapes_semantic=data_set(
            "cityscapes_semantic_val", L(register_cityscapes)(), _words("cityscapes_19"), 19
        ),
        coco_stuff_164k=data_set("coco_stuff_164k_val", _stuff, _words("coco_stuff_171"), 171),
    )
)
