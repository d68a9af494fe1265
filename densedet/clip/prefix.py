"""Prompts that begin alike: a causal transformer runs over their beginning once.

No token sees what follows it, so the hidden states of the beginning do not depend on the rest. The
tokens after it need nothing of it but its keys and values in every block. This is exact.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from densedet.errors import ConfigError

Run = Callable[..., Tensor]
"""Calls its first argument with the others, e.g. with activation checkpointing."""


def check_blocks(blocks: Iterable[nn.Module]) -> None:
    """Raise ConfigError unless all are open_clip's ordinary blocks, as in every released CLIP."""
    for block in blocks:
        if not isinstance(block, ResidualAttentionBlock) or hasattr(block, "ln_1_kv"):
            raise ConfigError(
                f"the prefix of prompts cannot be shared in blocks of {type(block).__name__}; "
                "encode every prompt whole (share_prefix=False)"
            )


def causal_mask(length: int, like: Tensor) -> Tensor:
    """Additive mask ``[length, length]``: 0, and -inf for what follows a token."""
    mask = torch.full((length, length), -torch.inf, dtype=like.dtype, device=like.device)
    return mask.triu_(1)


def keep_prefix(blocks: Sequence[ResidualAttentionBlock], prefix: Tensor, run: Run) -> list[Tensor]:
    """Run over the beginnings.

    Args:
        blocks: see `check_blocks`.
        prefix: ``[B, M, width]``, positions added.
        run: calls a block.

    Returns:
        For every block, the keys and the values of the beginnings: ``[B, M, 2 * width]``.
    """
    mask = causal_mask(prefix.shape[1], prefix)
    kept = []
    for block in blocks:
        weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
        width = prefix.shape[-1]  # the rows before are those of the queries
        kept.append(F.linear(block.ln_1(prefix), weight[width:], bias[width:]))
        prefix = run(block, prefix, None, None, mask)
    return kept


def continue_prompts(
    blocks: Sequence[ResidualAttentionBlock], tokens: Tensor, kept: Sequence[Tensor], run: Run
) -> Tensor:
    """Run over what follows the beginnings.

    Args:
        blocks: those of `keep_prefix`.
        tokens: ``[B, P, L, width]``, positions added: P sequences after each beginning.
        kept: of `keep_prefix`.
        run: calls a function.

    Returns:
        ``[B, P, L, width]``, the output of the last block.
    """
    for block, prefix in zip(blocks, kept, strict=True):
        tokens = run(_block, block, tokens, prefix)
    return tokens


def _block(block: ResidualAttentionBlock, tokens: Tensor, prefix: Tensor) -> Tensor:
    tokens = tokens + block.ls_1(_attend(block.attn, block.ln_1(tokens), prefix))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


def _attend(attention: nn.MultiheadAttention, tokens: Tensor, prefix: Tensor) -> Tensor:
    """Every sequence ``[B, P, L, width]`` sees the beginning and, causally, itself."""
    count, length = tokens.shape[1:3]
    heads = attention.num_heads
    projected = F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    # to [B, heads, P, L, d], and [B, heads, M, d] of the beginning, which is not copied P times
    queries, keys, values = projected.unflatten(-1, (3, heads, -1)).permute(3, 0, 4, 1, 2, 5)
    first_keys, first_values = prefix.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    queries = queries * queries.shape[-1] ** -0.5
    first = (queries.flatten(2, 3) @ first_keys.mT).unflatten(2, (count, length))
    own = queries @ keys.mT + causal_mask(length, queries)
    weights = torch.cat([first, own], dim=-1).softmax(dim=-1)
    first, own = weights.split([first.shape[-1], length], dim=-1)
    mixed = (first.flatten(2, 3) @ first_values).unflatten(2, (count, length)) + own @ values
    output: Tensor = attention.out_proj(mixed.permute(0, 2, 3, 1, 4).flatten(-2))
    return output
