"""The card of a saved model: what it is, what it knows, and how it is used."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from densedet import __version__
from densedet.model_zoo import ModelEntry
from densedet.vocabulary import Vocabulary

_LABELS = 24

_TEMPLATE = """---
license: {identifier}
library_name: densedet
tags: [open-vocabulary, clip]
---

# {title}

| | |
|---|---|
| model | {kind}, {parameters:.2f} M parameters |
| training | {trained} |
| vocabulary | {vocabulary} |
| image statistics | RGB in 0..255: mean {mean}, std {std} |
| licence | {licence} |
| source | {source} |
| written by | densedet {densedet}, torch {torch} |

{metrics}
```python
from densedet.saved_model import load_model

model = load_model("FOLDER")  # or "hf-hub:OWNER/NAME"
```

Nothing here is run when it is loaded: weights are safetensors, and `config.yaml` names parts of
densedet, Detectron2 and torch alone. Results have the labels of `vocabulary.json`; any other words
will do where the heads take them (`model.set_vocabulary`).

| file | sha256 |
|---|---|
{files}
"""


def model_card(
    model: Any,
    trained: Vocabulary,
    vocabulary: Vocabulary,
    about: ModelEntry | None,
    digests: Mapping[str, str],
) -> str:
    """Markdown, with the front matter that the Hugging Face Hub reads.

    Args:
        model: any with image statistics.
        trained: the vocabulary of its training.
        vocabulary: that it is saved with.
        about: what is known of it; None where nothing is.
        digests: of the files of the folder.
    """
    statistics = (model.pixel_mean.flatten(), model.pixel_std.flatten())
    mean, std = (", ".join(f"{v:.3f}" for v in values.tolist()) for values in statistics)
    return _TEMPLATE.format(
        identifier=about.licence.lower() if about else "unknown",
        title=about.what if about else type(model).__name__,
        kind=type(model).__name__,
        parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        trained=_described(trained),
        vocabulary=_described(vocabulary),
        mean=mean,
        std=std,
        licence=about.licence if about else "not stated",
        source=f"`{about.source}`" if about else "not stated",
        densedet=__version__,
        torch=version("torch"),
        metrics=_metrics(about),
        files="\n".join(f"| `{name}` | `{digest}` |" for name, digest in digests.items()),
    )


def _described(vocabulary: Vocabulary) -> str:
    labels = ", ".join(label.replace("|", "\\|") for label in vocabulary.labels[:_LABELS])
    more = ", ..." if len(vocabulary) > _LABELS else ""
    return f"{len(vocabulary)} categories, {sum(vocabulary.seen)} of them seen: {labels}{more}"


def _metrics(about: ModelEntry | None) -> str:
    if about is None or not about.metrics:
        return ""
    rows = "\n".join(f"| {name} | {value} |" for name, value in about.metrics)
    return f"Expected, in percent, from `{about.command}`:\n\n| | |\n|---|---|\n{rows}\n"
