"""Chooses the pre-tokenizer of a byte-level BPE tokenizer in a GGUF: its `tokenizer.ggml.pre`, or that of `--pre`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compact.base.errors import UnsupportedTokenizerError, UsageError
from compact.vocabulary.pretokenizers import READABLE_NAMES, is_readable


def chosen_pre(values: Mapping[str, Any], pre: str | None, where: str) -> str:
    """Return the name of the pre-tokenizer.

    Args:
        values: the GGUF's key-values.
        pre: the name that the user gave with `--pre`, or None.
        where: the file's path, for messages.

    Raises:
        UsageError: `pre` is not in the table of `compact.vocabulary.pretokenizers`.
        UnsupportedTokenizerError: the user gave no name, and the file's own is missing or not in the table.
    """
    if pre is None:
        return _own_pre(values, where)
    if not is_readable(pre):
        raise UsageError(
            f"--pre {pre[:60]!r}: a GGUF cannot be converted with this pre-tokenizer",
            f"use one of: {READABLE_NAMES}",
        )
    return pre


def _own_pre(values: Mapping[str, Any], where: str) -> str:
    """Return `tokenizer.ggml.pre`. Raises UnsupportedTokenizerError if it is missing or not in the table."""
    pre = values.get("tokenizer.ggml.pre")
    if isinstance(pre, str) and is_readable(pre):
        return pre
    name = f"give the model's pre-tokenizer with --pre NAME (one of: {READABLE_NAMES})"
    checkpoint = "start from the Hugging Face checkpoint"
    if pre is None:
        what, hint = (
            "no tokenizer.ggml.pre, so the pre-tokenizer is unknown",
            f"an old converter made this file: {name}",
        )
    elif pre == "default":
        what, hint = "tokenizer.ggml.pre is 'default', so the converter did not know the pre-tokenizer", name
    else:
        what = f"tokenizer.ggml.pre {str(pre)[:60]!r} is not supported"
        hint = f"{checkpoint}; or, if this name is wrong, {name}"
        raise UnsupportedTokenizerError(f"{where}: {what}", hint)
    raise UnsupportedTokenizerError(f"{where}: {what}", f"{hint}, or {checkpoint}")
