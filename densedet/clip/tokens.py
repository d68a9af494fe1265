"""Texts as tokens, and phrases that are longer than what a text tower reads of them."""

import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from open_clip import tokenizer as clip_tokenizer
from torch import Tensor

from densedet.errors import VocabularyError
from densedet.vocabulary import render_prompts

Cut = Mapping[str, tuple[int, int]]
"""Phrase -> how many of its words are kept, and how many it has."""

_LOG = logging.getLogger(__name__)
_SHOWN = 80  # characters
_END = " .!"  # of a prompt, no word


def tokenize_whole(texts: Sequence[str]) -> Tensor:
    """Tokens ``[N, longest]`` int64 on the CPU, padded with 0: start, words, end; nothing is cut.

    The CPU also where a model is built on the meta device, whose tensors hold no values.
    """
    bound = max(len(text.encode()) for text in texts) + 2  # a token covers at least one byte
    with torch.device("cpu"):
        tokens = clip_tokenizer.tokenize(list(texts), bound)
        return tokens[:, : int(tokens.argmax(dim=1).max()) + 1]


def cut_texts(texts: Sequence[str], tokens: Tensor) -> Cut:
    """The texts that did not fit into their tokens ``[N, length]``."""
    length = tokens.shape[1]
    cut = {}
    for text, last in zip(texts, tokens[:, -1].tolist(), strict=True):
        words = text.split()
        kept = _fitting(words, length) if last else len(words)
        if kept < len(words):
            cut[text] = kept, len(words)
    return cut


def cut_names(
    names: Sequence[str], prompts: Sequence[Sequence[str]], template_set: str, length: int
) -> Cut:
    """The names of which not every word is within the first ``length`` tokens of every prompt.

    Args:
        names: what is prompted.
        prompts: of each name, those of the template set.
        template_set: see :func:`densedet.vocabulary.render_prompts`.
        length: tokens of a prompt, start and end included.
    """
    cut = {}
    for name, of_name in zip(names, prompts, strict=True):
        if max(len(prompt.encode()) for prompt in of_name) + 2 <= length:
            continue
        index, before, others = _latest(template_set)
        words = of_name[index].rstrip(_END).split()
        own = len(words) - others
        kept = max(0, min(own, _fitting(words, length) - before))
        if kept < own:
            cut[name] = kept, own
    return cut


def warn_of_cut(cut: Cut, length: int) -> None:
    """Name every phrase that is cut in a warning, once in a process."""
    for phrase, (kept, words) in cut.items():
        _warn(phrase, kept, words, length)


def check_distinct(
    names: Sequence[str], tokens: Sequence[Tensor], groups: Sequence[int], cut: Cut
) -> None:
    """Refuse names of two categories whose prompts are the same only because they are cut.

    Args:
        names: what is prompted.
        tokens: of each name, ``[T, length]``.
        groups: the category of each name.
        cut: of `cut_names`.

    Raises:
        VocabularyError: naming the two.
    """
    seen: dict[bytes, int] = {}
    for index, rows in enumerate(tokens if cut else ()):
        if not rows[:, -1].any():
            continue
        other = seen.setdefault(rows.cpu().numpy().tobytes(), index)
        first, second = names[other], names[index]
        if groups[other] != groups[index] and (first in cut or second in cut):
            raise VocabularyError(
                f"the names {_ends(first)} and {_ends(second)} are the same to the text "
                f"tower, which reads {rows.shape[1]} tokens: they differ only after them; "
                "shorten them"
            )


def _fitting(words: Sequence[str], length: int) -> int:
    """How many of the first words fit into so many tokens, start and end included."""
    words = words[:length]
    starts = [" ".join(words[: count + 1]) for count in range(len(words))]
    with torch.device("cpu"):
        tokens = clip_tokenizer.tokenize(starts, length + 1)
    return int(tokens[:, -1].eq(0).sum())


@lru_cache
def _latest(template_set: str) -> tuple[int, int, int]:
    """Of the template whose name begins last: its index, words before the name, words but it."""
    found = []
    for index, prompt in enumerate(render_prompts("x", template_set)):
        words = prompt.rstrip(_END).split()
        before = words.index("x")
        found.append((tokenize_whole([" ".join(words[:before])]).shape[1], index, before, words))
    _, index, before, words = max(found)
    return index, before, len(words) - 1


@lru_cache(maxsize=1024)
def _warn(phrase: str, kept: int, words: int, length: int) -> None:
    _LOG.warning(
        "%r is longer than the %d tokens that the text tower reads: of its %d words the first %d "
        "are kept; shorten it",
        phrase if len(phrase) <= _SHOWN else phrase[:_SHOWN] + "...",
        length,
        words,
        kept,
    )


def _ends(name: str) -> str:
    short = name if len(name) <= _SHOWN else f"{name[: _SHOWN // 2]}...{name[-_SHOWN // 2 :]}"
    return repr(short)
