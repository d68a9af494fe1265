"""The errors that densedet raises for bad input.

Each message names the file, the record and the remedy; the tools print it as one line and exit
with code 2.
"""


class DensedetError(Exception):
    """Base class: the input is wrong, and the message says what to change."""

    exit_code = 2  # of a tool that ends with it


class ConfigError(DensedetError, ValueError):
    """A config, an override or a command line does not fit."""


class VocabularyError(DensedetError, ValueError):
    """A vocabulary is empty, ambiguous or does not match what it is used with."""


class DatasetError(DensedetError, ValueError):
    """An annotation file or one of its records is wrong."""


class ImageError(DensedetError, OSError):
    """An image is missing, truncated or not an image."""


class CheckpointError(DensedetError, ValueError):
    """A checkpoint cannot be read safely or belongs to another model."""


class OutputError(DensedetError, OSError):
    """A file cannot be written where it should be."""


class InstallationError(DensedetError, RuntimeError):
    """A dependency is missing or does not fit."""


class Terminated(BaseException):
    """SIGTERM arrived; no error, so that nothing that handles errors goes on after it."""
