"""Tables and curves of a vocabulary study."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from densedet.errors import ConfigError
from densedet.evaluation.results import leaves, plain
from densedet.files import atomic_path, writing

Row = Mapping[str, Any]

_OVERALL = ("PQ", "mIoU", "AP50")
_GROUPS = ("seen", "unseen")


def scalar_figures(results: Mapping[str, Any], labels: Iterable[str]) -> dict[str, float | None]:
    """What an evaluator says, without the figures of single classes.

    Args:
        results: task -> figure -> value.
        labels: of the classes; a figure of one of them is called "metric-label".

    Returns:
        "task/figure" -> value; None where it is undefined.
    """
    single = set(labels)
    return {
        name: value
        for name, value in leaves(plain(results))
        if _metric(name).partition("-")[2] not in single
    }


def _metric(name: str) -> str:
    """The name behind the task; a label in it may have a "/" of its own."""
    return name.partition("/")[2] or name


def choose_metrics(figures: Mapping[str, float | None], wanted: Sequence[str]) -> list[str]:
    """The figures to be drawn.

    Args:
        figures: as of :func:`scalar_figures`.
        wanted: some of their names; empty for the overall one (PQ, mIoU or AP50, else the first)
            and its forms for seen and unseen classes, if both are defined.

    Raises:
        ConfigError: a name that is none of them, or there are none.
    """
    unknown = [name for name in wanted if name not in figures]
    if unknown:
        raise ConfigError(f"metrics: {unknown[0]!r} is none of {', '.join(figures)}")
    if wanted:
        return list(wanted)
    if not figures:
        raise ConfigError("dataloader.evaluator reports no figures")
    names = {_metric(name): name for name in reversed(list(figures))}
    overall = next((names[o] for o in _OVERALL if o in names), next(iter(figures)))
    groups = [f"{overall}{mark}{group}" for group in _GROUPS for mark in "-_"]
    defined = [name for name in groups if figures.get(name) is not None]
    # without unseen classes the seen ones are all
    return [overall, *(defined if len(defined) == len(_GROUPS) else ())]


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV; a cell is empty for None and for what a row does not have.

    Raises:
        OutputError: the file cannot be written.
    """
    with (
        atomic_path(path) as temporary,
        writing(path),
        open(temporary, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)


def write_curves(path: Path, rows: Sequence[Row], metrics: Sequence[str]) -> None:
    """Draw a study as PNG.

    Args:
        path: of the picture; its stem is the study.
        rows: as in its table; what one does not have is not drawn, as where nothing was found.
        metrics: the columns that are drawn, in percent.

    Raises:
        OutputError: the file cannot be written.
    """
    draw = {"synonyms": _synonyms, "distractors": _distractors, "exponents": _exponents}[path.stem]
    wide = path.stem == "exponents"
    figure = Figure(figsize=(11 if wide else 6.5, 4.2), dpi=110, layout="constrained")
    draw(figure, rows, metrics)
    highest = max(row.get(name) or 0.0 for row in rows for name in metrics)
    for axes in figure.axes:
        axes.set_ylim(0, 1.1 * highest or 1.0)
    with atomic_path(path) as temporary, writing(path):
        figure.savefig(temporary, format="png")


def _synonyms(figure: Figure, rows: Sequence[Row], metrics: Sequence[str]) -> None:
    figure.suptitle("Categories asked for by a synonym instead of their name")
    axes = figure.subplots()
    axes.set_xlabel("fraction asked for by a synonym, of the categories that have one")
    _lines(axes, rows, "fraction", metrics)


def _distractors(figure: Figure, rows: Sequence[Row], metrics: Sequence[str]) -> None:
    figure.suptitle("Further categories, which the data set does not have")
    axes = figure.subplots()
    axes.set_xlabel("number of further categories")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    _lines(axes, rows, "count", metrics)


def _exponents(figure: Figure, rows: Sequence[Row], metrics: Sequence[str]) -> None:
    figure.suptitle("Exponent of the dense map of CLIP in the ensemble")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, swept, fixed in zip(panels, ("unseen", "seen"), ("seen", "unseen"), strict=True):
        part = [row for row in rows if row["swept"] == swept]
        axes.set_xlabel(f"exponent of {swept} classes; {fixed}: {part[0][fixed]:g}")
        _lines(axes, part, swept, metrics)


def _lines(axes: Axes, rows: Sequence[Row], x: str, metrics: Sequence[str]) -> None:
    for name in metrics:
        found = [row.get(name) for row in rows]
        values = [float("nan") if value is None else value for value in found]
        axes.plot([row[x] for row in rows], values, marker="o", linewidth=1.8, label=name)
    axes.set_ylabel("percent")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
