"""Checked attention: scores, softmax and values, each checked."""

from proa_kernels.attention.ops import checked_attention, dup_attention

__all__ = ["checked_attention", "dup_attention"]
