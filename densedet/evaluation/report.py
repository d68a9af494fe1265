"""A self-contained HTML page on the quickstart: a table, learning curves and pictures."""

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Row = Mapping[str, float | None]

FIGURES = ("seen_ap50_box", "unseen_ap50_box", "seen_ap50_mask", "unseen_ap50_mask")
_SOURCES = {
    "seen_ap50_box": ("bbox", "AP50-seen"),
    "unseen_ap50_box": ("bbox", "AP50-unseen"),
    "seen_ap50_mask": ("segm", "AP50-seen"),
    "unseen_ap50_mask": ("segm", "AP50-unseen"),
}
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c1c1c; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .4rem .9rem; border-bottom: 1px solid #d0d0d0; text-align: right; }
th:first-child, td:first-child { text-align: left; }
td.unseen { font-weight: 600; }
.pictures { display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); }
img { max-width: 100%; }
figure { margin: 0; } figcaption { font-size: .85rem; color: #555; }
"""


def detector_figures(results: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """The four figures of a detector, in percent, from the results of its evaluator."""
    found = {name: results[task].get(key) for name, (task, key) in _SOURCES.items()}
    return {k: None if v is None or math.isnan(v) else round(v, 2) for k, v in found.items()}


def read_curve(path: Path, key: str = "total_loss") -> list[tuple[int, float]]:
    """(iteration, value) of a scalar from the ``metrics.json`` of a training."""
    points = []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if key in record:
            points.append((int(record["iteration"]), float(record[key])))
    return points


def learning_curves(curves: Mapping[str, Sequence[tuple[int, float]]]) -> bytes:
    """PNG of the loss of each detector against the iteration."""
    figure = Figure(figsize=(7, 3.4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name, linewidth=1.8)
    axes.set(xlabel="iteration", ylabel="total loss", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _image(png: bytes, text: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(text)}">'


def _table(rows: Mapping[str, Row]) -> str:
    head = "".join(
        f"<th>{name}</th>"
        for name in ("detector", "seen box", "unseen box", "seen mask", "unseen mask")
    )
    lines = []
    for name, row in rows.items():
        cells = "".join(
            f'<td class="{figure.split("_")[0]}">'
            f"{'–' if row[figure] is None else format(row[figure], '.1f')}</td>"
            for figure in FIGURES
        )
        lines.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def build_report(
    rows: Mapping[str, Row],
    curves: Mapping[str, Sequence[tuple[int, float]]],
    pictures: Sequence[tuple[Path, str]],
    facts: Mapping[str, Any],
) -> str:
    """The page as HTML.

    Args:
        rows: the four figures of each detector, by its name.
        curves: the loss of each detector.
        pictures: PNG files with captions.
        facts: what else to state: counts, seeds, versions.
    """
    shown = "".join(
        f"<figure>{_image(path.read_bytes(), text)}"
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
        for path, text in pictures
    )
    stated = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(str(value))}</td></tr>"
        for key, value in facts.items()
    )
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>densedet quickstart</title>
<style>{_STYLE}</style></head><body>
<h1>Detections of classes never trained on</h1>
<p>Two Mask R-CNNs on the same frozen tiny CLIP, trained with the boxes of the 48 seen things of
Shapes World. 16 things, every “ball” and every “kite”, were in the training pictures without a
label. AP at IoU 0.5, in percent, on validation scenes. The closed-set head has no text: it cannot
name a class without labels.</p>
{_table(rows)}
<p>Shapes World is synthetic. The tiny CLIP saw all 64 names in image captions, as a web CLIP does,
but never a box, a mask or one of these scenes.</p>
<h2>Learning curves</h2>{_image(learning_curves(curves), "total loss against the iteration")}
<h2>Unseen classes, found by their names</h2>
<p>All 64 words were asked for; shown is what was called by one of the 16 unseen ones, with scores
of at least 20 %.</p><div class="pictures">{shown}</div>
<h2>Facts</h2><table>{stated}</table>
</body></html>
"""
