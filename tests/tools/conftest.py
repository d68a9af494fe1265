"""Tools as modules."""

import pytest


@pytest.fixture(scope="module")
def demo(load_script):
    """tools/demo.py as a module."""
    return load_script("tools/demo.py")


@pytest.fixture(scope="module")
def export_model(load_script):
    """tools/export_model.py as a module."""
    return load_script("tools/export_model.py")


@pytest.fixture(scope="module")
def analyze_model(load_script):
    """tools/analyze_model.py as a module."""
    return load_script("tools/analyze_model.py")


@pytest.fixture(scope="module")
def benchmark(load_script):
    """tools/benchmark.py as a module."""
    return load_script("tools/benchmark.py")
