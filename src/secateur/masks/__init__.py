"""Which weights stay: sparsity patterns and the exact-count selection of a mask from scores."""

from secateur.masks.pattern import Pattern, parse_pattern
from secateur.masks.selection import Group, check_group, keep_mask

__all__ = ["Group", "Pattern", "check_group", "keep_mask", "parse_pattern"]
