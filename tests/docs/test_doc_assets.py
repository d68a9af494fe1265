"""tools/make_doc_assets.py, and the pictures that it made."""

from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["detection.png", "panoptic.png", "semantic.png", "similarity.png"]


def test_one_command_draws_all(workspace, run_command):
    said = run_command(workspace, "python tools/make_doc_assets.py --output output/assets")
    assert sorted(path.name for path in (workspace / "output/assets").iterdir()) == NAMES
    assert [f"output/assets/{name}" in said for name in NAMES] == [True] * 4
    for name in NAMES:
        with Image.open(workspace / "output/assets" / name) as drawn:
            assert drawn.size == (400, 400) and len(drawn.getcolors()) > 8


@pytest.mark.parametrize("name", NAMES)
def test_what_is_in_the_documentation_is_small(name):
    path = ROOT / "docs/assets" / name
    assert path.stat().st_size < 100_000
    with Image.open(path) as picture:
        assert picture.size == (400, 400)


def test_without_data_it_says_what_to_do(tmp_path, run_command):
    with pytest.raises(AssertionError, match="run make demo"):
        run_command(tmp_path, "python tools/make_doc_assets.py")
    assert not list(tmp_path.iterdir())
