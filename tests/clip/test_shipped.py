"""The tiny CLIP that ships with densedet."""

from importlib import resources

import pytest
import torch

from densedet.clip import build_text_encoder, build_visual, create_clip
from densedet.evaluation.zero_shot import scene_crops, zero_shot_accuracy
from densedet.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def clip():
    return create_clip("densedet-tiny", "shipped")


def test_the_file_is_small():
    file = resources.files("densedet.clip") / "resources" / "densedet-tiny.safetensors"
    assert len(file.read_bytes()) <= 6_000_000


def test_every_word_of_shapes_world_was_trained(clip, caplog):
    names = Vocabulary.named("shapes_world").labels
    embedded = build_text_encoder(clip).embed_names(names, template_set="single")
    assert not caplog.records  # a word without a trained row is warned of
    cosines = embedded @ embedded.T - torch.eye(len(names))
    assert cosines.max() < 0.99


def test_zero_shot_accuracy_on_crops(clip):
    """64 ways, chance 1.6 %; the figure on 300 scenes is in the model card."""
    names = list(Vocabulary.named("shapes_world").of_kind("thing").labels)
    visual = build_visual(clip)
    crops, labels = scene_crops(seed=0, split="val", count=60, size=visual.image_size[0])
    embeddings = build_text_encoder(clip).embed_names(names, template_set="single")
    accuracy = zero_shot_accuracy(visual, crops, labels, names, embeddings)
    assert len(labels) > 300 and accuracy >= 60
    shuffled = zero_shot_accuracy(visual, crops, labels[1:] + labels[:1], names, embeddings)
    assert shuffled < 15
