"""Class names with learned contexts before them, through a frozen text tower."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from densedet.clip import TextEncoder
from densedet.clip.precision import full_precision
from densedet.clip.prefix import check_blocks
from densedet.clip.text import tokenize_whole
from densedet.errors import ConfigError, VocabularyError
from densedet.modeling.weight_state import weight_state
from densedet.vocabulary import Vocabulary, render_prompts


class PromptedTextEncoder(nn.Module):
    """Embeds ``[start, learned contexts, name, end]`` for every prompted name of a vocabulary.

    CoOp (arXiv 2109.01134) as in DenseCLIP (arXiv 2112.01518): the names are bare, without a
    sentence around them, and all share the contexts. In eval mode the embeddings are kept, without
    gradient, until the mode, the vocabulary or a weight changes.

    Args:
        encoder: the text tower; it is taken over: its position table is cut to the longest prompt
            and, if ``frozen``, its parameters are set not to train.
        vocabulary: what to embed.
        num_contexts: N, learned vectors before the name.
        class_tokens: the longest name, start and end token included.
        context_std: standard deviation of the initial contexts, a normal distribution cut at twice
            that. DenseCLIP's 1.0 is some 50 times that of the token embeddings; CoOp has 0.02.
        frozen: keep the tower in eval mode and its weights without gradient, which still reaches
            the contexts. False trains the tower, which follows for segmentation from DenseCLIP's
            published schedule: its floor lifts a learning rate of 0.
        share_prefix: run over start and contexts once for all names, which is exact; False runs
            over every prompt whole.
        chunk: names at a time, for less memory; None for all.
        checkpointing: compute the activations of the tower again in the backward pass, for less
            memory.

    Attributes:
        contexts: [1, N, width] parameter.
        tokens: [P, L] int64 token ids of the bare names, L at most ``class_tokens``.
        groups: [P] int64, the category of every name.

    Raises:
        ConfigError: the tower has fewer positions than ``num_contexts + class_tokens`` or, with
            ``share_prefix``, blocks that are not CLIP's own; ``chunk`` is below 1.
        VocabularyError: see `set_vocabulary`.
    """

    tokens: Tensor
    ends: Tensor
    groups: Tensor

    def __init__(
        self,
        encoder: TextEncoder,
        vocabulary: Vocabulary,
        *,
        num_contexts: int = 8,
        class_tokens: int = 5,
        context_std: float = 1.0,
        frozen: bool = True,
        share_prefix: bool = True,
        chunk: int | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if chunk is not None and chunk < 1:
            raise ConfigError(f"chunk {chunk} of the prompts must be at least 1, or None for all")
        if share_prefix:
            check_blocks(encoder.transformer.resblocks)
        encoder.keep_positions(num_contexts + class_tokens)
        if frozen:
            encoder.requires_grad_(False).eval()
        self.encoder = encoder
        self.embed_dim = encoder.embed_dim
        self.width = encoder.width
        self.class_tokens = class_tokens
        self.frozen = frozen
        self.share_prefix = share_prefix
        self.chunk = chunk
        encoder.checkpointing = checkpointing
        self.contexts = nn.Parameter(torch.empty(1, num_contexts, encoder.width))
        nn.init.trunc_normal_(self.contexts, std=context_std, a=-2 * context_std, b=2 * context_std)
        for name in ("tokens", "ends", "groups"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64), persistent=False)
        self._cached: tuple[tuple[Any, ...], Tensor] | None = None
        self.set_vocabulary(vocabulary)

    @property
    def vocabulary(self) -> Vocabulary:
        """What is embedded."""
        return self._vocabulary

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Embed these names from now on.

        Raises:
            VocabularyError: a name of more than ``class_tokens - 2`` tokens; nothing changes then.
        """
        # tensors made in inference mode could not take part in training later
        with torch.inference_mode(False):
            tokens = tokenize_whole([render_prompts(n, "plain")[0] for n in vocabulary.synonyms])
            ends = tokens.argmax(dim=1)  # the end token has the highest id
            self._check_lengths(vocabulary, ends.tolist())
            device = self.contexts.device
            self.tokens = tokens.to(device)
            self.ends = ends.to(device)
            self.groups = torch.tensor(vocabulary.groups, dtype=torch.int64, device=device)
        self._vocabulary = vocabulary
        self._cached = None

    def _check_lengths(self, vocabulary: Vocabulary, ends: list[int]) -> None:
        room = self.class_tokens - 2
        for name, group, end in zip(vocabulary.synonyms, vocabulary.groups, ends, strict=True):
            if end - 1 > room:
                label = vocabulary.labels[group]
                raise VocabularyError(
                    f"category {label!r}: the name {name!r} has {end - 1} tokens, but prompts of "
                    f"class_tokens={self.class_tokens} (start and end included) hold {room}; "
                    f"shorten the name or build the model with class_tokens={end + 1} or more"
                )

    def train(self, mode: bool = True) -> "PromptedTextEncoder":
        """Set the mode; a frozen tower stays in eval mode. Training drops the kept embeddings."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        if mode:
            self._cached = None
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PromptedTextEncoder":
        self._cached = None  # e.g. half() and float() round a weight that stays the same object
        super()._apply(fn, recurse)
        return self

    def forward(self, contexts: Tensor | None = None) -> Tensor:
        """Embed the vocabulary.

        Args:
            contexts: [B, N, width] contexts of every image in place of the learned ones; those of
                another number fit as long as the names leave them room.

        Returns:
            [B, P, E], or [1, P, E] with the learned contexts; not normalised. In eval mode with the
            learned contexts: without gradient, fp32, and computed only once. For their gradient in
            eval mode pass them as ``contexts``.
        """
        if contexts is not None:
            return self._encode(contexts)
        if self.training:
            return self._encode(self.contexts)
        # `train` drops the embeddings in any case, and so do moves of this module and its parents
        state = weight_state(self)
        if self._cached is None or self._cached[0] != state:
            self._cached = (state, self._encode_once())
        return self._cached[1]

    def _encode_once(self) -> Tensor:
        # Usable in training and in any precision later: no tensor of inference mode or autocast.
        precise = full_precision(self.contexts.device)
        with torch.inference_mode(False), torch.no_grad(), precise:
            if not self.tokens.is_meta:
                self.encoder.warn_of_untrained(self.tokens)
            return self._encode(self.contexts)

    def _encode(self, contexts: Tensor) -> Tensor:
        words = self.encoder.embed_tokens(self.tokens)
        start, names, ends = words[:1, :1], words[:, 1:], self.ends - 1
        prefix = torch.cat([start.expand(len(contexts), -1, -1), contexts], dim=1)
        if self.share_prefix:
            return self.encoder.encode_shared(prefix, names, ends, self.chunk)
        size = self.chunk or len(names)
        parts = zip(names.split(size), ends.split(size), strict=True)
        return torch.cat([self._encode_whole(prefix, *part) for part in parts], dim=1)

    def _encode_whole(self, prefix: Tensor, names: Tensor, ends: Tensor) -> Tensor:
        """As `TextEncoder.encode_shared`, the prefix repeated for every name."""
        batch, length = prefix.shape[:2]
        shape = (batch, len(names), -1, -1)
        prompts = torch.cat([prefix[:, None].expand(shape), names.expand(shape)], dim=2)
        embeddings = self.encoder.encode_prompts(
            prompts.flatten(0, 1), (ends + length).repeat(batch)
        )
        return embeddings.unflatten(0, shape[:2])
