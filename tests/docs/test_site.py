"""The documentation builds as a site, with nothing missing and no dead link."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def hooks(load_script):
    return load_script("docs/hooks.py")


def test_every_page_is_there(site):
    pages = {path.parent.relative_to(site).as_posix() for path in site.rglob("index.html")}
    own = {p.relative_to(ROOT / "docs").with_suffix("") for p in (ROOT / "docs").rglob("*.md")}
    projects = {f"projects/{path.parent.name}" for path in ROOT.glob("projects/*/README.md")}
    assert len(projects) >= 6
    assert pages == {".", "tutorial", *projects, *map(str, own)}


def test_no_link_is_dead(site):
    checked = 0
    for page in site.rglob("index.html"):
        for link in re.findall(r'(?:href|src)="([^"#?]+)[^"]*"', page.read_text()):
            if not re.match(r"[a-z]+:", link):
                target = (page.parent / link).resolve()
                assert target.is_file() or (target / "index.html").is_file(), (page, link)
                checked += 1
    assert checked > 1000


def test_what_the_pages_show(site):
    api = (site / "api/predictor/index.html").read_text()
    assert 'id="densedet.predictor.Predictor.set_vocabulary"' in api
    assert not re.search(r":(func|class|meth|mod):", (site / "api/data/index.html").read_text())
    tutorial = (site / "tutorial/index.html").read_text()
    assert tutorial.count('src="../tutorial_files/') == 3
    assert (site / "projects/fvit/configs/quickstart.py").is_file()  # a README links to it
    assert not (site / "hooks.py").exists()


@pytest.mark.parametrize(
    ("page", "target", "path", "place"),
    [
        ("index.md", "docs/install.md", "docs/install.md", "install.md"),
        ("guidance.md", "../projects/icpc/README.md", "projects/icpc/README.md", None),
        ("projects/icpc/README.md", "../../docs/datasets.md", "docs/datasets.md", "datasets.md"),
        ("projects/icpc/README.md", "configs/a.py", "projects/icpc/configs/a.py", None),
        ("model_cards/a.md", "../../README.md", "README.md", "index.md"),
        ("tutorial.md", "custom_data.md", "docs/custom_data.md", "custom_data.md"),
    ],
)
def test_links_mean_the_same_in_repository_and_site(hooks, page, target, path, place):
    assert hooks.repository_path(page, target) == path
    assert hooks.site_path(path) == (path if place is None else place)
