"""The JSON of an evaluation: figures, and where they come from."""

import json
import math
import platform
from importlib.metadata import version

import numpy as np
import pytest
import torch

from densedet.errors import OutputError
from densedet.evaluation.results import installed_versions, write_results
from densedet.vocabulary import Vocabulary
from densedet.weights import weights_digest

METRICS = {
    "bbox": {"AP": np.float32(0.5), "AP50": math.nan, "APl": math.inf, "images": np.int64(3)},
    "convention": "present",
    "matrix": [[1, 2], (3, np.nan)],
}
PLAIN = {
    "bbox": {"AP": 0.5, "AP50": None, "APl": None, "images": 3.0},
    "convention": "present",
    "matrix": [[1, 2], [3, None]],
}


def _read(file):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)


def test_figures_and_origin(tmp_path):
    words = Vocabulary.parse("cat,kitten;kite").with_unseen(["kite"])
    weights = {"a": torch.arange(3.0), "b": torch.zeros(2, dtype=torch.bfloat16)}
    file = tmp_path / "out/results.json"
    other = Vocabulary.parse("Ölbild")
    written = write_results(
        file,
        METRICS,
        vocabulary=words,
        weights=weights,
        text={"templates": "single"},
        seed=7,
        data_sets={"pictures": other},
        unfinished=["photographs"],
    )
    content = _read(file)
    assert content == written
    origin = content.pop("provenance")
    assert content == PLAIN
    versions = origin.pop("versions")
    assert origin == {
        "weights": weights_digest(weights),
        "vocabulary": words.digest(),
        "text": {"templates": "single"},
        "seed": 7,
        "unfinished": ["photographs"],
        "data_sets": {"pictures": {"vocabulary": other.digest()}},
    }
    assert versions == installed_versions()
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == version("torch")
    changed = {**weights, "a": torch.tensor([0.0, 1.0, 2.5])}
    assert write_results(file, {}, weights=changed)["provenance"]["weights"] != origin["weights"]


def test_what_is_unknown_is_null(tmp_path):
    file = tmp_path / "results.json"
    write_results(file, {"bbox": {"AP": 1.0}})
    origin = _read(file)["provenance"]
    assert set(origin) == {"versions", "weights", "vocabulary", "text", "seed"}
    assert {origin[name] for name in set(origin) - {"versions"}} == {None}


def test_nothing_is_half_written(tmp_path):
    file = tmp_path / "results.json"
    file.write_text("earlier")
    with pytest.raises(ValueError, match="no metric or data set may be called 'provenance'"):
        write_results(file, {"provenance": 1})
    with pytest.raises(TypeError):
        write_results(file, {"bbox": object()})
    assert file.read_text() == "earlier" and list(tmp_path.iterdir()) == [file]
    with pytest.raises(OutputError, match=r"results.json/more.json cannot be written"):
        write_results(file / "more.json", {})
