import json
from pathlib import Path

import pytest
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

from densedet.errors import VocabularyError
from densedet.vocabulary import TEMPLATE_SETS, Vocabulary, clean_name, render_prompts


@pytest.mark.golden
def test_clipself_prompts_equal_the_reference_in_order(golden_dir: Path) -> None:
    golden = json.loads((golden_dir / "text_prompts.json").read_text("utf-8"))
    assert golden["names"]
    rendered = {name: render_prompts(name, "clipself63") for name in golden["names"]}
    assert rendered == {name: golden["prompts"][name] for name in golden["names"]}


@pytest.mark.parametrize("name", ["cat", "Umbrella/Parasol.", "arctic_(type_of_shoe)"])
def test_clipself_counts(name: str) -> None:
    prompts = render_prompts(name, "clipself63")
    assert len(set(prompts)) == len(prompts) == 63
    assert sum(prompt.startswith("This is ") for prompt in prompts) == 58


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("apple", "There is an apple in the scene."),
        ("Apple", "There is a apple in the scene."),  # the raw first letter, case sensitive
        ("_apple", "There is a  apple in the scene."),
        ("hour", "There is a hour in the scene."),
        ("a/B_c...", "There is an a or b c in the scene."),
        ("wall-other-merged", "There is a wall-other-merged in the scene."),
    ],
)
def test_clipself_article_and_cleaning(name: str, first: str) -> None:
    assert render_prompts(name, "clipself63")[0] == first


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("a_b/c", "a b or c"),
        ("Mr. Bean.", "mr. bean"),
        ("arctic_(type_of_shoe)", "arctic (type of shoe)"),
        ("window-blind", "window-blind"),
    ],
)
def test_clean_name(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned


@pytest.mark.parametrize("name", ["apple", "Remote_control"])
def test_clip80_is_the_set_of_clip(name: str) -> None:
    prompts = render_prompts(name, "clip80")
    assert len(prompts) == 80
    spaced = name.replace("_", " ")
    assert set(prompts) == {template(spaced) for template in OPENAI_IMAGENET_TEMPLATES}


def test_plain_keeps_the_users_text_but_for_underscores() -> None:
    assert render_prompts("Band_Aid", "plain") == ["Band Aid"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "a photo of a cat."),
        ("orange ball", "a photo of an orange ball."),
        ("iPod", "a photo of an iPod."),
        ("Umbrella", "a photo of an Umbrella."),
        ("remote_control", "a photo of a remote control."),
        ("_apple", "a photo of an apple."),
        ("hourglass", "a photo of an hourglass."),
        ("unicycle", "a photo of a unicycle."),
        ("uninflated ball", "a photo of an uninflated ball."),
        ("urinal", "a photo of a urinal."),
        ("urn", "a photo of an urn."),
        ("utensil", "a photo of a utensil."),
        ("one-way sign", "a photo of a one-way sign."),
        ("onesie", "a photo of an onesie."),
    ],
)
def test_single_article(name: str, expected: str) -> None:
    assert render_prompts(name, "single") == [expected]


@pytest.mark.parametrize("template_set", TEMPLATE_SETS)
def test_every_lvis_name_is_in_every_prompt(template_set: str) -> None:
    for name in Vocabulary.named("lvis_v1").labels:
        prompts = render_prompts(name, template_set)
        assert len(set(prompts)) == len(prompts)
        spaced = name.replace("_", " ").lower()
        assert all(spaced in prompt.lower() and "{" not in prompt for prompt in prompts)


def test_braces_in_a_name_are_kept() -> None:
    assert render_prompts("{x}", "single") == ["a photo of a {x}."]
    assert render_prompts("{x}", "clipself63")[0] == "There is a {x} in the scene."


def test_unknown_set_lists_the_choices() -> None:
    assert TEMPLATE_SETS == ("plain", "single", "clipself63", "clip80")
    with pytest.raises(VocabularyError, match="'clip81'.*plain, single, clipself63, clip80"):
        render_prompts("cat", "clip81")


@pytest.mark.parametrize("template_set", TEMPLATE_SETS)
@pytest.mark.parametrize("name", ["", " ", "_"])
def test_empty_name_is_refused(name: str, template_set: str) -> None:
    with pytest.raises(VocabularyError, match="empty name"):
        render_prompts(name, template_set)
