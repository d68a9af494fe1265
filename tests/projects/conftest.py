"""Data sets that configs read when they are built."""

import json

import pytest


@pytest.fixture(scope="session")
def categories(tmp_path_factory):
    """A root of data sets with the names of ADE20K-Full's classes, which the user supplies."""
    root = tmp_path_factory.mktemp("datasets")
    folder = root / "ADE20K_2021_17_01"
    folder.mkdir()
    records = [{"name": f"thing {i}", "trainId": i} for i in range(847)]
    records[5]["name"] = "video cassette recorder player, vcr"  # as long as real names are
    (folder / "categories.json").write_text(json.dumps(records))
    return root


@pytest.fixture(autouse=True)
def datasets(categories, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(categories))
