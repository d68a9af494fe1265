"""The text tower of a CLIP: words, or learned prompts, to embeddings."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from open_clip import tokenizer as clip_tokenizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from densedet.clip.prefix import causal_mask, check_blocks, continue_prompts, keep_prefix
from densedet.clip.tokens import (
    Cut,
    check_distinct,
    cut_names,
    cut_texts,
    tokenize_whole,
    warn_of_cut,
)
from densedet.errors import ConfigError
from densedet.vocabulary import render_prompts

__all__ = ["TEXT_TOWER_VERSION", "TextEncoder", "tokenize_whole"]

TEXT_TOWER_VERSION = 3
"""Raised when the numerics of this file, or what is refused or stored beside them, change, so that
cached embeddings are made anew."""

_BATCH = 256
_VOCABULARY_SIZE = 49408
_LOG = logging.getLogger(__name__)


class TextEncoder(nn.Module):
    """Text tower of an open_clip model (``CLIP`` or ``CustomTextCLIP``), sharing its modules.

    Parameter names are open_clip's. The causal mask is additive (0 and -inf): open_clip casts a
    boolean one to float and adds it.

    Attributes:
        embed_dim: D.
        width: channels of a token embedding.
        context_length: tokens of a prompt, start and end included.
        checkpointing: keep only the inputs of the blocks for the backward pass and compute the rest
            again: the same numbers from less memory.
    """

    checkpointing: bool

    def __init__(self, clip_model: Any) -> None:
        """Share the text modules of ``clip_model``.

        Raises:
            ConfigError: the text tower is none of CLIP's (Hugging Face towers, CoCa, SigLIP).
        """
        super().__init__()
        source = getattr(clip_model, "text", clip_model)
        _check_text_tower(source)
        self.transformer = source.transformer
        self.token_embedding = source.token_embedding
        self.ln_final = source.ln_final
        self.positional_embedding = source.positional_embedding
        self.text_projection = source.text_projection
        self.checkpointing = False
        self.context_length: int = source.context_length
        self.width: int = source.token_embedding.embedding_dim
        projection = source.text_projection
        linear = isinstance(projection, nn.Linear)
        self.embed_dim: int = projection.out_features if linear else projection.shape[1]

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """CLIP's byte-pair tokens ``[N, context_length]`` int64.

        Longer texts are cut; each is named in a warning, with the count of its words that are kept.
        """
        tokens = self._tokens(texts)
        warn_of_cut(cut_texts(texts, tokens), self.context_length)
        return tokens.to(self.token_embedding.weight.device)

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        """On the CPU, without a word about what is cut."""
        with torch.device("cpu"):
            return clip_tokenizer.tokenize(list(texts), self.context_length)

    def keep_positions(self, length: int) -> None:
        """Keep the first ``length`` rows of the position table; longer prompts are refused then.

        The table becomes a parameter of its own, no longer shared with the open_clip model.

        Raises:
            ConfigError: the table has fewer rows.
        """
        table = self.positional_embedding
        if not 0 < length <= len(table):
            raise ConfigError(
                f"prompts of {length} tokens do not fit a text tower of {len(table)} positions: "
                "lower the number of contexts or of class tokens"
            )
        kept = table.detach()[:length].clone()
        self.positional_embedding = nn.Parameter(kept, requires_grad=table.requires_grad)
        self.context_length = length

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """Token ids ``[N, L]`` to token embeddings ``[N, L, width]``, without positions."""
        return self.token_embedding(tokens)

    def encode_prompts(self, prompts: Tensor, eot: Tensor) -> Tensor:
        """Encode token embeddings, e.g. with learned contexts among them. Differentiable.

        Args:
            prompts: ``[N, L, width]`` without positions, L at most ``context_length``.
            eot: ``[N]`` int64, where the end token is; what follows it has no influence.

        Returns:
            ``[N, D]``, not normalised.

        Raises:
            ValueError: the prompts are longer than the context.
        """
        tokens = self._run_blocks(self._add_positions(prompts))
        return self._project(tokens[torch.arange(len(eot), device=eot.device), eot])

    def encode_shared(
        self, prefix: Tensor, words: Tensor, ends: Tensor, chunk: int | None = None
    ) -> Tensor:
        """Encode prompts that differ only after their beginning, which is run over only once.

        Equal to `encode_prompts` of every beginning with every continuation, up to rounding: the
        attention is causal. Differentiable.

        Args:
            prefix: ``[B, M, width]`` beginnings without positions, e.g. of every image.
            words: ``[P, L, width]`` continuations without positions, M + L at most
                ``context_length``.
            ends: ``[P]`` int64, where in ``words`` the end token is.
            chunk: continuations at a time, for less memory; None for all.

        Returns:
            ``[B, P, D]``, not normalised.

        Raises:
            ConfigError: the blocks of the tower are not CLIP's own.
            ValueError: the prompts are longer than the context, or ``chunk`` is below 1.
        """
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk {chunk} must be at least 1 prompt")
        blocks = self.transformer.resblocks
        check_blocks(blocks)
        words = self._add_positions(words, start=prefix.shape[1])
        kept = keep_prefix(blocks, self._add_positions(prefix), self._checkpointed)
        size = chunk or len(words)
        parts = []
        for some, at in zip(words.split(size), ends.split(size), strict=True):
            tokens = some.expand(len(prefix), -1, -1, -1)
            tokens = continue_prompts(blocks, tokens, kept, self._checkpointed)
            last = tokens[:, torch.arange(len(at), device=at.device), at]
            parts.append(self._project(last.flatten(0, 1)).unflatten(0, last.shape[:2]))
        return torch.cat(parts, dim=1)

    def _add_positions(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Of ``[N, L, width]`` whose first token is the prompt's token ``start``."""
        length = start + tokens.shape[1]
        if length > self.context_length:
            raise ValueError(
                f"prompts of {length} tokens do not fit the context of {self.context_length}: "
                "shorten the names or the learned contexts"
            )
        return tokens + self.positional_embedding[start:length].to(tokens.dtype)

    def _run_blocks(self, tokens: Tensor) -> Tensor:
        mask = causal_mask(tokens.shape[1], tokens)
        if not self.checkpointing:
            output: Tensor = self.transformer(tokens, attn_mask=mask)
            return output
        for block in self.transformer.resblocks:
            tokens = self._checkpointed(block, tokens, None, None, mask)
        return tokens

    def _checkpointed(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """Call ``function``; what it keeps for the backward pass depends on `checkpointing`."""
        if not (self.checkpointing and torch.is_grad_enabled()):
            return function(*args)
        return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)

    def _project(self, last: Tensor) -> Tensor:
        """The end tokens ``[N, width]`` to the embeddings ``[N, D]``."""
        last = self.ln_final(last)
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(last)
        return last @ self.text_projection

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: ``[N, D]``, not normalised.

        Words whose token embedding was never trained (rows of zeros, as in a file that stores only
        the rows it used) are named in a warning; they do not tell texts apart.
        """
        if not len(texts):
            return self.positional_embedding.new_zeros(0, self.embed_dim)
        return self._encode_all(self.tokenize(texts))

    def _encode_all(self, tokens: Tensor) -> Tensor:
        self.warn_of_untrained(tokens)
        return torch.cat([self._encode_tokens(batch) for batch in tokens.split(_BATCH)])

    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        eot = tokens.argmax(dim=-1)  # the end token has the highest id
        # Attention is causal: the padding after the last end token of the batch has no influence.
        tokens = tokens[:, : int(eot.max()) + 1]
        return self.encode_prompts(self.embed_tokens(tokens), eot)

    @torch.no_grad()
    def embed_names(
        self, names: Sequence[str], template_set: str, groups: Sequence[int] | None = None
    ) -> Tensor:
        """One unit vector a name: its prompts normalised, averaged, normalised again.

        Names that are longer than the context are cut, and named in a warning.

        Args:
            names: what is prompted (synonyms, not labels).
            template_set: see :func:`densedet.vocabulary.render_prompts`.
            groups: the category of every name; None for one each.

        Returns:
            ``[P, D]`` fp32 without gradient, in the order of ``names``.

        Raises:
            VocabularyError: names of two categories are the same after they are cut.
        """
        prompts = [render_prompts(name, template_set) for name in names]
        if not prompts:
            return self.positional_embedding.new_zeros(0, self.embed_dim, dtype=torch.float32)
        sizes = [len(of_name) for of_name in prompts]
        tokens = self._tokens([prompt for of_name in prompts for prompt in of_name])
        cut = cut_names(names, prompts, template_set, self.context_length)
        warn_of_cut(cut, self.context_length)
        groups = range(len(names)) if groups is None else groups
        check_distinct(names, tokens.split(sizes), groups, cut)
        tokens = tokens.to(self.token_embedding.weight.device)
        vectors = F.normalize(self._encode_all(tokens).float(), dim=-1)
        means = [part.mean(dim=0) for part in vectors.split(sizes)]
        return F.normalize(torch.stack(means), dim=-1)

    def cut(self, names: Sequence[str], template_set: str) -> Cut:
        """The names that `embed_names` cuts, with how many of their words are kept."""
        prompts = [render_prompts(name, template_set) for name in names]
        return cut_names(names, prompts, template_set, self.context_length)

    @torch.no_grad()
    def warn_of_untrained(self, tokens: Tensor) -> None:
        """Name, in a warning, the words of ``tokens`` (int64) whose embedding is a row of zeros."""
        used = tokens.unique()
        used = used[used != 0]  # padding, which is also "!"
        untrained = used[~self.token_embedding.weight[used].any(dim=-1)]
        if len(untrained):
            words = [clip_tokenizer.decode(token[None]).strip() for token in untrained]
            _LOG.warning(
                "these words (or parts of words) were never trained and have no meaning here: %s",
                ", ".join(words),
            )


def _check_text_tower(source: Any) -> None:
    needed = ("transformer", "token_embedding", "ln_final", "positional_embedding")
    pool = getattr(source, "pool_type", None) or getattr(source, "text_pool_type", None)
    causal = getattr(source, "attn_mask", None) is not None
    fits = all(hasattr(source, name) for name in needed) and causal and pool == "argmax"
    fits = fits and getattr(source, "cls_emb", None) is None
    if not fits or source.text_projection is None:
        raise ConfigError(f"unsupported text tower {type(source).__name__}: CLIP's own is needed")
    if source.token_embedding.num_embeddings != _VOCABULARY_SIZE:
        raise ConfigError(
            f"a text tower of {source.token_embedding.num_embeddings} tokens: "
            f"CLIP's byte-pair tokenizer has {_VOCABULARY_SIZE}"
        )
