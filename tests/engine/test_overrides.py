"""Text in overrides and configs: kept as it was typed where text belongs."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from detectron2.config import LazyCall as L
from omegaconf import DictConfig, OmegaConf

from densedet.data import build_test_loader
from densedet.engine.config import apply_overrides, build, check_arguments, load_config
from densedet.engine.options import train_options
from densedet.errors import ConfigError

# what YAML or Hydra's grammar reads as something else, or not at all
TEXTS = [
    *("2024", "1e3", "1.5", "null", "on", "true", "0x10", "~", "2024-01-01", "1_000", "inf"),
    *("[x]", "[1,2]", "{a: 1}", "a,b", "x[1]", "/data/my data (1)", "/data/données", "/data/日本"),
    *("/data/it's", 'say "yes"', "a=b", "a#b", "a & b", "~/data", "a:b", "C:\\data\\", " space "),
    *(
        "100%",
        "a;b",
        "{",
        "(",
        "$HOME",
        "a|b",
        "*",
        "!x",
        "@x",
        "`x`",
        "\\'",
        "range(1,3)",
        "'half",
    ),
]


@pytest.fixture(scope="module")
def common():
    """The common options of training."""
    return load_config("configs/common/train.py")


def reads(
    file: str | os.PathLike[str],
    folder: Path,
    tag: str | None = None,
    names: str | list[str] = "",
    kind: Literal["a", "b"] = "a",
    size: int | str = 3,
    rate: float = 1.0,
    anything: Any = None,
    plain=None,
    word="x",
):
    """A function with arguments of several kinds."""
    return locals()


def changed(*overrides, **more):
    cfg = DictConfig(
        {"call": L(reads)(file="a", folder="b"), **more}, flags={"allow_objects": True}
    )
    apply_overrides(cfg, overrides)
    return cfg


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_kept_as_it_was_typed(common, text):
    apply_overrides(common, [f"train.output_dir={text}", f"train.init_checkpoint=./{text}"])
    assert train_options(common).output_dir == text
    assert train_options(common).init_checkpoint == f"./{text}"
    keys = ("file", "folder", "tag", "word")
    cfg = changed(*(f"call.{key}=/{text}" for key in keys))
    assert [cfg.call[key] for key in keys] == [f"/{text}"] * 4


@pytest.mark.parametrize(
    ("key", "typed", "value"),
    [
        ("file", "null", "null"),
        ("file", "'2024'", "2024"),
        ("file", '"it\'s"', "it's"),
        ("tag", "null", None),
        ("tag", "'null'", "null"),
        ("tag", "7", "7"),
        ("names", "[a,b]", ["a", "b"]),
        ("names", "a,b", "a,b"),
        ("names", "7", "7"),
        ("kind", "b", "b"),
        ("size", "7", 7),
        ("size", "1,2", "1,2"),
        ("rate", "1e3", 1000.0),
        ("anything", "7", 7),
        ("plain", "[1,2]", [1, 2]),
        ("word", "7", "7"),  # as its default is text
        ("plain", "7", 7),
    ],
)
def test_what_a_key_expects_decides(key, typed, value):
    found = changed(f"call.{key}={typed}").call[key]
    assert found == value and type(found) is type(DictConfig({"x": value}).x)
    assert changed(f"+call.{key}={typed}").call[key] == value


def test_what_refers_to_a_key_and_what_stands_there_decide_too():
    more = {"clip": {"tag": "x", "size": 1, "root": "r"}, "use": L(reads)(file="${clip.root}/a")}
    more["use"].tag = "${..clip.tag}"
    changes = ("clip.tag=null", "clip.root=2024", "clip.size=2")
    cfg = changed(*changes, **more)
    assert (cfg.clip.tag, cfg.clip.root, cfg.clip.size) == (None, "2024", 2)
    assert cfg.use.file == "2024/a"
    cfg = changed("clip.tag=null", clip={"tag": "x"})
    assert cfg.clip.tag == "null"
    assert changed("clip.tag=[a,b]", clip={"tag": "x"}).clip.tag == ["a", "b"]


@pytest.mark.parametrize("typed", ["a,b", "it's", "my data (1)", 'say "it\'s"', "[1"])
def test_the_message_shows_the_line_to_type(typed):
    with pytest.raises(ConfigError) as caught:
        changed(f"call.plain={typed}")
    message = str(caught.value)
    assert "\n" not in message
    line = message.partition("for text type ")[2].partition(": ")[0]
    (word,) = shlex.split(line)
    assert changed(word).call.plain == typed


@pytest.mark.parametrize(
    ("value", "said"), [("2024", "int"), ("1.5", "float"), ("on", "bool"), ("2024-01-01", "date")]
)
def test_a_config_in_yaml_that_holds_another_thing_is_refused(tmp_path, value, said):
    file = tmp_path / "config.yaml"
    target = "densedet.clip.create_visual"
    file.write_text(f"model: {{_target_: {target}, model: densedet-tiny, pretrained: {value}}}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(str(file))
    assert str(caught.value).startswith("model.pretrained=")
    assert f"has the type {said} where create_visual wants text; in the config put" in str(
        caught.value
    )
    file.write_text(file.read_text().replace(value, f"'{value}'"))
    assert load_config(str(file)).model.pretrained == value
    with pytest.raises(ConfigError, match=r"call.folder=7 has the type int where reads wants text"):
        check_arguments({"call": L(reads)(file="a", folder=7, size=7, word=7)}["call"], "call")


def test_modules_beside_a_config_can_be_imported(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_the_config.py").write_text("def make(size):\n    return [size]\n")
    (tmp_path / "torch.py").write_text("raise RuntimeError('hides torch')\n")
    config = tmp_path / "config.py"
    config.write_text(
        "from detectron2.config import LazyCall as L\nfrom beside_the_config import make\n"
        "import torch\nmodel = L(make)(size=3)\n"
    )
    cfg = load_config(str(config), ["model.size=4"])
    assert build(cfg.model, "model") == [4]
    assert sys.path.index(str(tmp_path)) == len(sys.path) - 1
    config.write_text("import not_beside_the_config\n")
    with pytest.raises(ConfigError) as caught:
        load_config(str(config))
    assert str(caught.value) == (
        f"{config}, line 1: ModuleNotFoundError: No module named 'not_beside_the_config' "
        f"(looked for in {tmp_path}, beside the config, and on PYTHONPATH)"
    )
    saved = tmp_path / "saved.yaml"
    saved.write_text("model: {_target_: gone_module.make, size: 3}\n")
    with pytest.raises(ConfigError, match="'gone_module.make'.*put its folder on PYTHONPATH"):
        load_config(str(saved))


def numbers(size: int, rate: float | None = 1.0, flag: bool = False, part: torch.nn.Module = None):
    return [size, rate, flag, part]


class Base:
    def __init__(self, *, topk: int = 3, words: str | None = None):
        self.topk = topk


class Derived(Base):
    def __init__(self, own: int, **kwargs):
        super().__init__(**kwargs)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (L(numbers)(size="abc"), "x.size=abc has the type str where numbers wants a number"),
        (L(numbers)(size=1, rate="fast"), "x.rate=fast .* wants a number"),
        (L(numbers)(size=1, flag="y"), "x.flag=y .* wants true or false"),
        (L(Derived)(own=1, topk="abc"), "x.topk=abc .* where Derived wants a number"),
        (
            L(build_test_loader)(dataset=[1], mapper=None),
            "x.mapper=None .*loader wants L",
        ),
        (L(build_test_loader)(dataset=[1], mapper="f"), "x.mapper=f .* wants L"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        check_arguments(call, "x")


def test_a_value_of_the_wrong_type_is_found_where_it_is_referred_to():
    cfg = OmegaConf.create({"size": "x", "model": L(numbers)(size="${..size}"), "gone": None})
    with pytest.raises(ConfigError, match=r"model\.size=x has the type str"):
        check_arguments(cfg)
    cfg.size = 3
    check_arguments(cfg)
    cfg.model = L(numbers)(size=True, rate=None, flag=0, part=None)  # part: not ours, and sloppy
    check_arguments(cfg)
    check_arguments(L(Derived)(own=1, topk=2, words=None), "x")


@pytest.mark.parametrize("size", [0, -1])
def test_a_number_that_a_constructor_cannot_take_is_one_line(size):
    with pytest.raises(
        ConfigError, match=r"^model: .*(ZeroDivision|Runtime)Error at .*\.py:\d+\)$"
    ):
        build(L(make_layer)(size=size), "model")


def make_layer(size: int):
    return torch.zeros(size) if size < 0 else 1 / size
