"""tools/web_demo.py in a real browser, with a panoptic model of untrained heads."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import gradio
import numpy as np
import pytest
import torch
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from densedet import model_zoo
from densedet.data.shapes_world_scenes import make_scene
from densedet.engine.checkpoint import Checkpointer
from densedet.engine.config import build
from densedet.errors import ConfigError, InstallationError
from densedet.predictor import Predictor

TOOL = Path(__file__).resolve().parents[2] / "tools" / "web_demo.py"
CONFIG = "projects/panoptic_fpn/configs/quickstart.py"
CHROMIUM = shutil.which("chromium")
PATIENCE = 600_000  # milliseconds; also on a machine with a load of 20

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    Checkpointer(build(model_zoo.get_config(CONFIG).model, "model"), str(folder)).save("panoptic")
    return folder / "panoptic.pth"


@pytest.fixture(scope="module")
def server(weights, tmp_path_factory):
    """The address of the page, and what the tool says."""
    folder = tmp_path_factory.mktemp("server")
    log = folder / "log.txt"
    words = ["--config-file", CONFIG, "--weights", str(weights), "--device", "cpu"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(TOOL), *words, "--port", str(free_port())],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)},
        )
    try:
        yield process.stdout.readline().partition(" ")[0], log
    finally:
        process.terminate()
        process.wait()
    assert [path.name for path in folder.iterdir()] == ["log.txt"]  # no pictures, no results


@pytest.fixture
def web_demo(load_script):
    """The tool as a module."""
    return load_script("tools/web_demo.py")


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        # pages come from this machine; containers have no sandbox
        shown = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield shown
        shown.close()


@pytest.fixture
def page(browser, server):
    """The page, loaded; it may ask nobody but the tool."""
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server[0])
    page.get_by_role("button", name="Find").wait_for()
    yield page
    page.close()
    assert [url for url in asked if not url.startswith((server[0], "data:", "blob:"))] == []


def find(page, words, task, stuff="grass;sand"):
    """Type, choose, click; the picture that appears, and the JSON that is downloaded."""
    page.get_by_label("Words").fill(words)
    page.get_by_label("Stuff").fill(stuff)
    page.get_by_role("radio", name=task).check()
    if task == "instance":
        expect(page.get_by_role("slider")).to_have_value("0.3")
        page.get_by_role("spinbutton").fill("0")
        page.get_by_role("spinbutton").press("Enter")
    page.get_by_role("button", name="Find").click()
    drawn = page.locator("#found img")
    drawn.wait_for()
    expect(page.locator("#count")).to_contain_text("pixels")
    content = page.request.get(drawn.get_attribute("src")).body()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download JSON").click()
    return np.array(Image.open(io.BytesIO(content))), json.loads(download.value.path().read_text())


def upload(page, path):
    page.locator("#upload input[type=file]").set_input_files(path)


def table(page):
    """The header and the rows of the page's table."""
    rows = page.locator("#results").get_by_role("row")
    header = page.locator("#results").get_by_role("columnheader").all_inner_texts()
    cells = [row.get_by_role("gridcell").all_inner_texts() for row in rows.all()]
    return [text.split("\n")[0] for text in header], [row for row in cells if row]


def differs(drawn, image):
    plain = Image.fromarray(image).resize(drawn.shape[1::-1], Image.Resampling.BICUBIC)
    return np.abs(drawn[..., :3].astype(int) - np.array(plain)).max() > 50


@needs_chromium
def test_words_are_found(page):
    drawn, said = find(page, "red star\nblue ring, blue hoop", "semantic")
    assert drawn.shape[:2] == (640, 640) and differs(drawn, make_scene(0, "val", 11).image)
    assert (said["width"], said["height"]) == (160, 160)
    expect(page.locator("#count")).to_contain_text("4 categories with 5 names: red star; blue ring")
    results = said["results"]
    assert {r["label"] for r in results} <= {"red star", "blue ring", "grass", "sand"}
    assert sum(r["area"] for r in results) == 160 * 160
    header, rows = table(page)
    assert header == ["label", "area"]
    assert rows == [[r["label"], str(r["area"])] for r in results]


@needs_chromium
def test_tasks_are_switched(page):
    _, said = find(page, "red star;blue ring", "instance")
    header, rows = table(page)
    assert header == ["label", "score", "bbox"] and said["results"]
    scores = [r["score"] for r in said["results"]]
    assert scores == sorted(scores, reverse=True)
    assert rows[0] == [str(said["results"][0][name]) for name in header]
    assert {r["label"] for r in said["results"]} <= {"red star", "blue ring"}


@needs_chromium
def test_the_similarity_of_a_phrase(page):
    drawn, said = find(page, "a red star, or a ring", "similarity")
    (found,) = said["results"]
    assert found["phrase"] == "a red star, or a ring" and -1 <= found["lowest"] < found["highest"]
    assert differs(drawn, make_scene(0, "val", 11).image)
    assert table(page)[1] == [[str(found[name]) for name in table(page)[0]]]


@needs_chromium
def test_an_example_and_an_upload(page, tmp_path):
    scene = make_scene(0, "val", 5)
    page.get_by_text("; ".join(dict.fromkeys(thing.label for thing in scene.things))).click()
    expect(page.get_by_label("Stuff")).to_have_value("; ".join(name for name, _ in scene.stuff))
    drawn, _ = find(page, "red star", "semantic")
    assert differs(drawn, scene.image)
    Image.fromarray(scene.image).resize((1200, 600)).save(tmp_path / "large.jpg")
    before = page.locator("#picture img").get_attribute("src")
    upload(page, tmp_path / "large.jpg")
    expect(page.locator("#picture img")).not_to_have_attribute("src", before)
    page.get_by_role("button", name="Find").click()
    expect(page.locator("#count")).to_contain_text("in 640 x 320 pixels")


@needs_chromium
@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ("text.jpg", "text.jpg is not an image"),
        ("large.png", "large.png has 10,000 x 5,000 pixels, 50.0 million; this page takes 20"),
        ("words", "5,000 words are too many: this page takes 1,000"),
        ("", "no words: type what to look for"),
        ("stuff", "no stuff: this model needs some too"),
        ("<b>cat</b>;<b>cat</b>", "category 2: the label '<b>cat</b>' is already used"),
    ],
)
def test_refusals_are_answered_in_the_page(page, server, tmp_path, refused, message):
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("1", (10_000, 5_000)).save(tmp_path / "large.png")
    before = page.locator("#picture img").get_attribute("src")
    if (tmp_path / refused).is_file():
        upload(page, tmp_path / refused)
    else:
        many = ";".join(f"word {i}" for i in range(4_998))  # and two for the stuff
        words = {"words": many, "stuff": " "}.get(refused, refused)
        page.get_by_label("Stuff" if refused == "stuff" else "Words").fill(words)
        page.get_by_role("button", name="Find").click()
    expect(page.get_by_test_id("toast-body")).to_contain_text(message)
    assert page.get_by_test_id("toast-body").locator("b").count() == 0  # no label becomes HTML
    assert page.locator("#picture img").get_attribute("src") == before
    assert "Traceback" not in server[1].read_text()
    page.get_by_test_id("toast-close").click()
    find(page, "red star", "semantic")  # and the page goes on


@needs_chromium
def test_the_picture_of_the_documentation(weights, tmp_path):
    tool, output = TOOL.with_name("make_web_picture.py"), tmp_path / "web.png"
    model = ["--config-file", CONFIG, "--weights", str(weights), "--port", str(free_port())]
    command = [sys.executable, str(tool), "--output", str(output), *model]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.strip() == str(output)
    for path in (output, TOOL.parents[1] / "docs" / "assets" / "web.png"):
        with Image.open(path) as picture:
            assert picture.size == (800, 727) and len(picture.getcolors()) > 64
        assert path.stat().st_size < 150_000


def test_the_page_says_how_the_words_were_understood(web_demo, weights, tmp_path):
    """Without a browser: what the button does."""
    Image.fromarray(make_scene(0, "val", 11).image).save(tmp_path / "a.tif")
    find = web_demo.finder(Predictor(CONFIG, weights, device="cpu"), tmp_path)
    for words, said in (
        ("red star . blue ring .", "`4 categories: red star; blue ring; grass; sand`"),
        ("a`b,*c*", "`3 categories with 4 names: a'b; grass; sand`"),
    ):
        _, count, _, _ = find(str(tmp_path / "a.tif"), words, "grass\nsand", "semantic", 0.0)
        assert count.endswith(f" found** in 160 x 160 pixels\n\n{said}")
    with pytest.raises(gradio.Error, match="line 1 has a YAML alias"):
        find(str(tmp_path / "a.tif"), "[*a]", "grass", "semantic", 0.0)


def test_only_this_machine_is_answered(server):
    port = int(server[0].rstrip("/").rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port)).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port))


def test_wrong_use_is_one_line(weights):
    words = ["--config-file", "absent.py", "--weights", str(weights), "--port", str(free_port())]
    done = subprocess.run([sys.executable, str(TOOL), *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    (error,) = done.stderr.splitlines()
    assert error.startswith("error: ") and "absent.py" in error


@pytest.mark.parametrize(
    ("host", "port"),
    [("127.0.0.1", "taken"), ("127.0.0.1", 0), ("127.0.0.1", 70_000), ("300.1.1.1", 7860)],
)
def test_where_it_cannot_listen(web_demo, host, port):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] if port == "taken" else port
        with pytest.raises(ConfigError, match=f"^cannot listen at {host}:{port} .*choose another"):
            web_demo.main(["--host", host, "--port", str(port)])


def test_a_defect_is_told_without_its_traceback(web_demo, caplog):
    with pytest.raises(gradio.Error, match="this cannot be looked at"), web_demo.told_in_the_page():
        raise MemoryError("of something")
    assert "of something" in caplog.text


def test_without_gradio_it_says_how_to_get_it(web_demo, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)  # as Python marks what cannot be imported
    with pytest.raises(InstallationError, match=r"pip install -e '\.\[web\]'"):
        web_demo.main([])
