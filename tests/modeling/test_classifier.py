import math

import pytest
import torch
import torch.nn.functional as F

from densedet.clip import ClassEmbeddings
from densedet.errors import VocabularyError
from densedet.modeling.roi_heads import CosineClassifier, ScoreEnsemble

# Unit vectors in the plane: the cosines can be read off. Class 0 has two synonyms.
PLANE = ClassEmbeddings(
    vectors=torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]),
    groups=torch.tensor([0, 0, 1]),
    background=torch.tensor([-1.0, 0.0]),
)


def random_embeddings(groups, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    vectors = F.normalize(torch.randn(len(groups), dim, generator=generator), dim=1)
    background = F.normalize(torch.randn(dim, generator=generator), dim=0)
    return ClassEmbeddings(vectors, torch.tensor(groups), background)


def plane_classifier(seen=(True, True), temperature=10.0, background="text"):
    classifier = CosineClassifier(2, temperature, background)
    classifier.set_classes(PLANE, seen)
    return classifier


def test_logits_are_the_temperature_times_the_cosine_and_the_best_synonym_counts():
    # cosines with the four rows: (0.8, 0.6, 0.96, -0.8); length does not matter
    logits = plane_classifier().eval()(torch.tensor([[4.0, 3.0], [0.0, -2.0]]))
    expected = torch.tensor([[8.0, 9.6, -8.0], [0.0, -8.0, 0.0]])
    torch.testing.assert_close(logits, expected)


def test_equals_a_loop_over_classes_and_synonyms():
    groups = [0, 0, 0, 1, 2, 2, 3]
    embeddings = random_embeddings(groups)
    classifier = CosineClassifier(6, 50.0).eval()
    classifier.set_classes(embeddings, (True, False, True, True))
    regions = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    logits = classifier(regions).detach()
    assert logits.shape == (5, 5)
    for r, region in enumerate(regions):
        unit = region / math.sqrt(sum(float(v) ** 2 for v in region))
        for k in range(4):
            rows = [v for v, g in zip(embeddings.vectors, groups, strict=True) if g == k]
            expected = 50.0 * max(float(unit @ row) for row in rows)
            assert float(logits[r, k]) == pytest.approx(expected, abs=1e-4)
        expected = 50.0 * float(unit @ embeddings.background)
        assert float(logits[r, 4]) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("groups", [[0, 1, 2, 3], [0, 0, 1, 2, 2, 2, 3]])
def test_permuted_classes_permute_the_scores(groups):
    embeddings = random_embeddings(groups)
    order = [2, 0, 3, 1]  # new class k is old class order[k]
    rows = [i for old in order for i, g in enumerate(groups) if g == old]
    permuted = ClassEmbeddings(
        embeddings.vectors[rows],
        torch.tensor([order.index(groups[i]) for i in rows]),
        embeddings.background,
    )
    seen = (True, False, True, True)
    regions = torch.randn(5, 6)
    for mode in (True, False):
        classifier = CosineClassifier(6).train(mode)
        classifier.set_classes(embeddings, seen)
        before = classifier(regions)
        classifier.set_classes(permuted, tuple(seen[k] for k in order))
        torch.testing.assert_close(classifier(regions), before[:, [*order, 4]])


def test_rows_need_not_come_in_the_order_of_their_classes():
    swapped = ClassEmbeddings(PLANE.vectors[:2], torch.tensor([1, 0]), PLANE.background)
    classifier = CosineClassifier(2, 10.0).eval()
    classifier.set_classes(swapped, (True, True))
    logits = classifier(torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(logits, torch.tensor([[0.0, 10.0, -10.0]]))


def test_unseen_columns_are_masked_in_training_only():
    classifier = plane_classifier(seen=(False, True))
    region = torch.tensor([[4.0, 3.0]])
    trained = classifier.train()(region)
    torch.testing.assert_close(trained, torch.tensor([[-torch.inf, 9.6, -8.0]]))
    torch.testing.assert_close(classifier.eval()(region), torch.tensor([[8.0, 9.6, -8.0]]))


@pytest.mark.parametrize("background", ["text", "learned"])
def test_gradients_are_finite_with_unseen_columns_masked(background):
    classifier = plane_classifier(seen=(False, True), background=background).train()
    # the second region is zero, as a class branch that ends with a ReLU can make it
    regions = torch.tensor([[4.0, 3.0], [0.0, 0.0]], requires_grad=True)
    F.cross_entropy(classifier(regions), torch.tensor([1, 2])).backward()
    for tensor in (regions, *classifier.parameters()):
        assert tensor.grad.isfinite().all()
    assert regions.grad[0].abs().sum() > 0
    assert classifier.temperature.grad != 0


def test_gradient_of_the_temperature():
    # one seen class with cosine 0.96, background with -0.8: d(loss)/dt = -(1 - p) * 1.76
    classifier = plane_classifier(seen=(False, True), temperature=1.0).train()
    F.cross_entropy(classifier(torch.tensor([[4.0, 3.0]])), torch.tensor([1])).backward()
    p = 1 / (1 + math.exp(-1.76))
    assert float(classifier.temperature.grad) == pytest.approx(-(1 - p) * 1.76, abs=1e-6)


def test_learned_background_is_a_trained_direction():
    classifier = plane_classifier(background="learned")
    with torch.no_grad():
        classifier.learned_background.copy_(torch.tensor([0.0, 5.0]))
    logits = classifier.eval()(torch.tensor([[4.0, 3.0]]))
    torch.testing.assert_close(logits, torch.tensor([[8.0, 9.6, 6.0]]))
    assert [n for n, _ in classifier.named_parameters()] == ["temperature", "learned_background"]
    assert [n for n, _ in plane_classifier().named_parameters()] == ["temperature"]


def test_unknown_background():
    with pytest.raises(ValueError, match='must be "text" or "learned", not \'none\''):
        CosineClassifier(2, background="none")


def test_embeddings_of_another_dimension():
    with pytest.raises(VocabularyError, match="have 2 dimensions, the head has 3"):
        CosineClassifier(3).set_classes(PLANE, (True, True))


@pytest.mark.parametrize("seen", [(True,), (True, True, True)])
def test_embeddings_of_another_number_of_classes(seen):
    with pytest.raises(VocabularyError, match=f"are of 2 classes, but {len(seen)} are described"):
        CosineClassifier(2).set_classes(PLANE, seen)


def test_a_checkpoint_holds_no_class_and_another_vocabulary_changes_no_weight():
    classifier = plane_classifier(background="learned")
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    assert set(before) == {"temperature", "learned_background"}
    classifier.set_classes(
        ClassEmbeddings(torch.eye(2), torch.tensor([0, 1]), torch.tensor([0.0, -1.0])), (True, True)
    )
    after = classifier.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    CosineClassifier(2, background="learned").load_state_dict(after)


def test_classes_set_in_inference_mode_can_be_trained_with():
    classifier = CosineClassifier(2)
    with torch.inference_mode():
        classifier.set_classes(PLANE, (False, True))
        classifier.eval()(torch.ones(1, 2))
    loss = F.cross_entropy(classifier.train()(torch.ones(1, 2)), torch.tensor([1]))
    loss.backward()
    assert classifier.temperature.grad.isfinite()


def test_logits_are_fp32_under_autocast():
    classifier = CosineClassifier(64).eval()
    classifier.set_classes(random_embeddings([0, 0, 1], dim=64), (True, True))
    regions = torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        logits = classifier(regions)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, classifier(regions))


# --- ensemble -------------------------------------------------------------------------------------

HEAD = [[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]]  # p of two regions over (class 0, class 1, background)
REGIONS = torch.tensor([[4.0, 3.0], [0.0, -2.0]])  # cosines (0.8, 0.96, -0.8), (0, -0.8, 0)


def softmax(values):
    exponentials = [math.exp(v) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def mixed(p, q, exponents):
    return [
        [a ** (1 - e) * b**e for a, b, e in zip(row_p, row_q, exponents, strict=True)]
        for row_p, row_q in zip(p, q, strict=True)
    ]


def test_ensemble_by_hand():
    classifier = plane_classifier(seen=(True, False)).eval()
    scores = ScoreEnsemble(seen=0.1, unseen=0.8, temperature=2.0)(
        torch.tensor(HEAD).log(), REGIONS, classifier
    )
    q = [softmax([1.6, 1.92, -1.6]), softmax([0.0, -1.6, 0.0])]
    expected = mixed(HEAD, q, [0.1, 0.8, 0.1])
    torch.testing.assert_close(scores.exp(), torch.tensor(expected))
    # the first row once more in plain numbers: 4.9530, 6.8210 and 0.2019 sum to 11.9760
    assert expected[0][0] == pytest.approx(0.5**0.9 * (4.9530 / 11.9760) ** 0.1, abs=1e-4)
    assert expected[0][1] == pytest.approx(0.2**0.2 * (6.8210 / 11.9760) ** 0.8, abs=1e-4)
    assert expected[0][2] == pytest.approx(0.3**0.9 * (0.2019 / 11.9760) ** 0.1, abs=1e-4)


def test_a_learned_background_keeps_its_probability():
    classifier = plane_classifier(seen=(True, False), background="learned").eval()
    scores = ScoreEnsemble(seen=0.1, unseen=0.8, temperature=2.0)(
        torch.tensor(HEAD).log(), REGIONS, classifier
    )
    q = [[*softmax([1.6, 1.92]), 1.0], [*softmax([0.0, -1.6]), 1.0]]
    expected = mixed(HEAD, q, [0.1, 0.8, 0.0])
    torch.testing.assert_close(scores.exp(), torch.tensor(expected))


@pytest.mark.parametrize("background", ["text", "learned"])
def test_exponents_zero_leave_the_head_alone(background):
    classifier = plane_classifier(seen=(True, False), background=background).eval()
    log_p = torch.tensor(HEAD).log()
    torch.testing.assert_close(ScoreEnsemble(0.0, 0.0, 75.0)(log_p, REGIONS, classifier), log_p)


def test_exponents_one_leave_the_dense_map_alone():
    classifier = plane_classifier(seen=(True, False)).eval()
    scores = ScoreEnsemble(1.0, 1.0, 2.0)(torch.tensor(HEAD).log(), REGIONS, classifier)
    expected = torch.tensor([softmax([1.6, 1.92, -1.6]), softmax([0.0, -1.6, 0.0])])
    torch.testing.assert_close(scores.exp(), expected)


def test_the_dense_embedding_is_normalised_again():
    classifier = plane_classifier(seen=(True, False)).eval()
    ensemble = ScoreEnsemble(0.1, 0.8, 75.0)
    log_p = torch.tensor(HEAD).log()
    scores = ensemble(log_p, 0.01 * REGIONS, classifier)
    torch.testing.assert_close(scores, ensemble(log_p, REGIONS, classifier))


def test_scores_far_apart_stay_finite():
    # p and q of a wrong class below the smallest fp32 number
    classifier = plane_classifier(seen=(True, False)).eval()
    log_p = torch.tensor([[0.0, -300.0, -300.0]])
    scores = ScoreEnsemble(0.1, 0.8, 300.0)(log_p, torch.tensor([[1.0, 0.0]]), classifier)
    assert scores.isfinite().all()
    assert float(scores[0, 1]) == pytest.approx(0.2 * -300.0 + 0.8 * 300.0 * (0.6 - 1.0), rel=1e-5)


@pytest.mark.parametrize(("seen", "unseen"), [(-0.1, 0.5), (1.1, 0.5), (0.5, -0.1), (0.5, 1.01)])
def test_exponents_lie_between_0_and_1(seen, unseen):
    with pytest.raises(ValueError, match=r"must lie in 0\.\.1"):
        ScoreEnsemble(seen, unseen, 1.0)
