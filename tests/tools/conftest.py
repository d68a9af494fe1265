"""Tools as modules."""

import pytest


@pytest.fixture(scope="module")
def demo(load_script):
    """tools/demo.py as a module."""
    return load_script("tools/demo.py")
