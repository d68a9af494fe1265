"""Making the data sets ready from their official files, and saying how far each of them is."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from densedet import __version__
from densedet.data.annotation_file import datasets_root
from densedet.data.benchmarks import BENCHMARKS, Benchmark
from densedet.data.verification import Contents, check_count, verify
from densedet.errors import DatasetError, ImageError
from densedet.files import write_text, writing

logger = logging.getLogger(__name__)

_MANIFESTS = ".densedet"


@dataclass(frozen=True)
class DatasetState:
    """How far a data set is.

    Attributes:
        name: as ``tools/prepare_datasets.py`` takes it.
        title: what it is called.
        status: "missing" (no file of it is there), "incomplete" (some are), "unprepared" (all are,
            but what is made from them is not), "unverified" (its annotations were not all read
            yet), or "ready" (also a part of it; the text says so).
        text: what is missing, or what there is.
    """

    name: str
    title: str
    status: str
    text: str

    @property
    def remedy(self) -> str:
        """What to do; empty if it is ready."""
        if self.status == "ready":
            return ""
        command = f"tools/prepare_datasets.py {self.name}"
        return f"{command} says where it is obtained" if self._absent else f"run {command}"

    @property
    def _absent(self) -> bool:
        return self.status in ("missing", "incomplete")


def prepare_dataset(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    any_count: bool = False,
    force: bool = False,
) -> dict[str, Contents]:
    """Make a data set ready: check the official files, convert them, read all annotations.

    What was made before is kept. Nothing half-written is left: a folder of label maps appears when
    it is whole, and the number of files is checked before that. From the start of this call until
    its end the data set does not count as ready.

    Args:
        name: of one of :data:`densedet.data.benchmarks.BENCHMARKS`.
        root: the folder of the data sets; default is the environment variable
            ``DETECTRON2_DATASETS``, or else "datasets".
        any_count: accept other numbers of images than the official ones, and training splits that
            lack a class.
        force: make what was made before anew.

    Returns:
        What the annotations of each split hold; also written to ``.densedet/<name>.json`` below the
        root.

    Raises:
        DatasetError: unknown name; files are missing or wrong. The message names them and says
            where they are obtained.
        ImageError: a map is truncated or corrupt.
        OutputError: a file cannot be written.
    """
    folder, benchmark = datasets_root(root), find_benchmark(name)
    manifest = _manifest(folder, name)
    with writing(manifest):
        manifest.unlink(missing_ok=True)
    missing = _missing(folder, benchmark, force)
    if missing:
        others = f" (nor {', '.join(missing[1:])})" if missing[1:] else ""
        raise DatasetError(f"{folder / missing[0]} does not exist{others}; {benchmark.hint}")
    expected: Mapping[str, int] = {} if any_count else benchmark.splits
    kept = _convert(folder, benchmark, expected, force)
    benchmark.register(folder)
    try:
        contents = _verify(benchmark, expected)
    except (DatasetError, ImageError) as error:
        if not kept:
            raise
        advice = f"{kept[0]} was made before; if it is that which does not fit, make it anew"
        raise type(error)(f"{error}; {advice} with --force") from error
    record = {"densedet": __version__, "splits": {k: asdict(v) for k, v in contents.items()}}
    write_text(manifest, json.dumps(record, indent=1))
    return contents


def dataset_state(name: str, root: str | os.PathLike[str] | None = None) -> DatasetState:
    """How far a data set is, from the files that are there; no annotation is read.

    Args:
        name, root: see :func:`prepare_dataset`.

    Raises:
        DatasetError: unknown name.
    """
    folder, benchmark = datasets_root(root), find_benchmark(name)
    missing = _missing(folder, benchmark)

    def state(status: str, text: str) -> DatasetState:
        return DatasetState(name, benchmark.title, status, text)

    if missing:
        archives = (*benchmark.sources, *benchmark.raw)
        absent = not any((folder / source).exists() for source in archives)
        text = f"no {', '.join([str(folder / missing[0]), *missing[1:]])}"
        return state("missing" if absent else "incomplete", text)
    for conversion in benchmark.conversions(folder):
        for path in conversion.missing():
            return state("unprepared", f"{path} is empty" if path.exists() else f"no {path}")
    images = _verified_images(folder, name)
    if images.keys() != benchmark.splits.keys():
        return state("unverified", "all files are there")
    counts = [f"{k}: {_count(images[k], n)}" for k, n in benchmark.splits.items()]
    return state("ready", ", ".join(counts))


def format_states(states: list[DatasetState]) -> str:
    """The states as text, one data set a line, with what to do below it."""
    width = max(len(state.name) for state in states)
    lines = []
    for state in states:
        lines.append(f"{state.name:<{width}}  {state.status:<10}  {state.title}: {state.text}")
        if state.remedy:
            lines.append(f"  -> {state.remedy}")
    return "\n".join(lines)


def find_benchmark(name: str) -> Benchmark:
    """The data set of this name.

    Raises:
        DatasetError: there is none.
    """
    if name not in BENCHMARKS:
        raise DatasetError(f"no data set named {name!r}; choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


def _missing(folder: Path, benchmark: Benchmark, force: bool = False) -> list[str]:
    """The files of the archives that are not there; those for conversions unless all is made."""
    made = not any(conversion.missing() for conversion in benchmark.conversions(folder))
    sources = benchmark.sources + (() if made and not force else benchmark.raw)
    return [source for source in sources if not (folder / source).exists()]


def _convert(
    folder: Path, benchmark: Benchmark, expected: Mapping[str, int], force: bool
) -> list[Path]:
    """Find and count the sources of all that has to be made; make it; return what is kept."""
    found, kept = [], []
    for conversion in benchmark.conversions(folder):
        if not conversion.missing() and not force:
            logger.info("%s is there already", conversion.outputs[0])
            kept.append(conversion.outputs[0])
            continue
        sources = conversion.sources()
        check_count(conversion.split, len(sources), expected.get(conversion.split))
        found.append((conversion, sources))
    for conversion, sources in found:
        conversion.write(sources)
    return kept


def _verify(benchmark: Benchmark, expected: Mapping[str, int]) -> dict[str, Contents]:
    """Read all splits; those for training have every seen class if the counts are official."""
    return {
        split: verify(
            split, expected.get(split), split in expected and split in benchmark.complete_splits
        )
        for split in benchmark.splits
    }


def _count(images: int, official: int) -> str:
    if images == official:
        return f"{images:,} images"
    return f"a part, {images:,} of {official:,} images"


def _manifest(folder: Path, name: str) -> Path:
    return folder / _MANIFESTS / f"{name}.json"


def _verified_images(folder: Path, name: str) -> dict[str, int]:
    """The number of images of each split; empty if the data set was not verified yet."""
    try:
        record: dict[str, Any] = json.loads(_manifest(folder, name).read_text(encoding="utf-8"))
        return {split: int(contents["images"]) for split, contents in record["splits"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
