"""A self-contained HTML page on the quickstart: tables, learning curves and pictures."""

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
REGIONS = ("boxes_macc1", "masks_macc1", "stuff_macc1")
PANOPTIC = ("PQ_seen", "PQ_unseen", "PQ_st", "SQ", "RQ")
_BASELINES = {
    "boxes_values_macc1": "projected values alone (MaskCLIP)",
    "boxes_tokens_macc1": "ordinary tokens of the last block",
    "boxes_attention_macc1": "a class token that sees only the box",
    "crops_macc1": "the crop through the whole encoder",
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
    return _rounded({name: results[task].get(key) for name, (task, key) in _SOURCES.items()})


def region_figures(results: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """Top-1 mean class accuracies, in percent, from the results of the region evaluator."""
    return _rounded({k: v for k, v in results["regions"].items() if k.endswith("_macc1")})


def panoptic_figures(results: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """Panoptic qualities, in percent, from the results of the panoptic evaluator."""
    return _rounded({name: results["panoptic_seg"].get(name) for name in PANOPTIC})


def segmentation_figures(
    results: Mapping[str, Mapping[str, float | None]],
) -> dict[str, float | None]:
    """The mean IoU, in percent, from the results of the semantic evaluator."""
    return _rounded({"mIoU": results["sem_seg"].get("mIoU")})


def _rounded(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    return {k: None if v is None or math.isnan(v) else round(v, 2) for k, v in figures.items()}


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


def _table(head: Sequence[str], rows: Mapping[str, Sequence[float | None]]) -> str:
    """Numbers with one decimal; a column whose head begins with "unseen" stands out."""
    kinds = [' class="unseen"' if name.startswith("unseen") else "" for name in head[1:]]
    lines = [f"<tr>{''.join(f'<th>{html.escape(name)}</th>' for name in head)}</tr>"]
    for name, values in rows.items():
        cells = "".join(
            f"<td{kind}>{'–' if value is None else format(value, '.1f')}</td>"
            for kind, value in zip(kinds, values, strict=True)
        )
        lines.append(f"<tr><td>{html.escape(name)}</td>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _detectors(rows: Mapping[str, Row]) -> str:
    head = ("detector", "seen box", "unseen box", "seen mask", "unseen mask")
    return _table(head, {name: [row[f] for f in FIGURES] for name, row in rows.items()})


def _regions(rows: Mapping[str, Row]) -> str:
    head = ("dense map", "boxes", "masks of things", "masks of stuff")
    return _table(head, {name: [row[f] for f in REGIONS] for name, row in rows.items()})


def _panoptic(rows: Mapping[str, Row]) -> str:
    head = ("PQ", "seen", "unseen", "stuff alone", "SQ of all", "RQ of all")
    return _table(head, {name: [row[f] for f in PANOPTIC] for name, row in rows.items()})


def _figures(pictures: Sequence[tuple[Path, str]]) -> str:
    shown = "".join(
        f"<figure>{_image(path.read_bytes(), text)}"
        f"<figcaption>{html.escape(text)}</figcaption></figure>"
        for path, text in pictures
    )
    return f'<div class="pictures">{shown}</div>'


def _baselines(rows: Mapping[str, Row]) -> str:
    names = {text: [row.get(key) for row in rows.values()] for key, text in _BASELINES.items()}
    return _table(("boxes of things by other ways", *rows), names)


def build_report(
    rows: Mapping[str, Row],
    regions: Mapping[str, Row],
    segmentation: Mapping[str, Row],
    panoptic: Mapping[str, Row],
    curves: Mapping[str, Sequence[tuple[int, float]]],
    pictures: Sequence[tuple[Path, str]],
    panoptic_pictures: Sequence[tuple[Path, str]],
    facts: Mapping[str, Any],
) -> str:
    """The page as HTML.

    Args:
        rows: the four figures of each detector, by its name.
        regions: the figures of region classification of each CLIP, by its name.
        segmentation: the mean IoU of each CLIP without training for it.
        panoptic: the panoptic qualities of each panoptic model, by its name.
        curves: the loss of each model that was trained.
        pictures: PNG files with captions, of the detections.
        panoptic_pictures: the same, of panoptic segments.
        facts: what else to state: counts, of which "training scenes" must be one, seeds, versions.
    """
    stated = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(str(value))}</td></tr>"
        for key, value in facts.items()
    )
    untrained = {name: [row["mIoU"]] for name, row in segmentation.items()}
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>densedet quickstart</title>
<style>{_STYLE}</style></head><body>
<h1>Detections of classes never trained on</h1>
<p>First the tiny CLIP teaches itself to see regions (CLIPSelf):
{facts["training scenes"]} pictures, no label. How many ground-truth regions of the validation
scenes its dense map names rightly among all 70 words, mean over the classes in percent, before and
after:</p>
{_regions(regions)}
<p>Other ways to name a box with the same two models:</p>
{_baselines(regions)}
<p>Every pixel named by the dense map alone, without any training for it (MaskCLIP):</p>
{_table(("dense map", "mIoU"), untrained)}
<p>Then three Mask R-CNNs on frozen CLIPs, trained with the boxes of the 48 seen things of Shapes
World. 16 things, every “ball” and every “kite”, were in the training pictures without a label. AP
at IoU 0.5, in percent, on the validation scenes. The closed-set head has no text: it cannot name a
class without labels. “clip” has the CLIP from before, “clipself” the one from after; there the
dense map takes part in the scores.</p>
{_detectors(rows)}
<p>And a Panoptic FPN on the CLIP from after, trained with the same 48 things and six kinds of
stuff. Panoptic quality in percent, over what was labelled in training (48 things and the stuff),
the 16 other things and the stuff alone; segmentation and recognition quality over all:</p>
{_panoptic(panoptic)}
<p>Shapes World is synthetic. The tiny CLIP saw all 64 names in image captions, as a web CLIP does,
but never a box, a mask or one of these scenes.</p>
<h2>Learning curves</h2>{_image(learning_curves(curves), "total loss against the iteration")}
<h2>Unseen classes, found by their names</h2>
<p>All 64 words were asked for; shown is what was called by one of the 16 unseen ones, with scores
of at least 20 %.</p>{_figures(pictures)}
<h2>Things and stuff, by other words</h2>
<p>The Panoptic FPN, asked for eight kinds of things (star, ring, ball, ...), each with its eight
coloured names as synonyms, instead of the words of its training.</p>
{_figures(panoptic_pictures)}
<h2>Facts</h2><table>{stated}</table>
</body></html>
"""
