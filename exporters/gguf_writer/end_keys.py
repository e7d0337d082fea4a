"""The keys of a GGUF that make llama.cpp stop where Transformers stops.

llama.cpp stops at the tokens of `tokenizer.ggml.eos_token_id`, `eot_token_id` and `eom_token_id`, and at tokens that it
knows by their text. `eos_token_id` names the EOS token of the tokenizer. The other two keys name ends of the model that
llama.cpp does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from compact.base.errors import UnsupportedTokenizerError
from compact.checkpoints.names import TOKENIZER_CONFIG
from compact.vocabulary.end_tokens import KEY, end_ids, ends_by_text, ends_file


def end_keys(checkpoint: Path, texts: Mapping[int, str], eos: int | None, codellama_eot: int | None) -> dict[str, int]:
    """Return role (`eot`, `eom`) -> id of the keys to write besides `eos`.

    Args:
        checkpoint: directory with generation_config.json or config.json.
        texts: id -> text of every token.
        eos: id of the key `eos`, or None.
        codellama_eot: id that the key `eot` must have for CodeLlama, or None.

    Raises:
        UnsupportedTokenizerError: a GGUF cannot make llama.cpp stop at every end, or llama.cpp would stop at an
            ordinary token.
        DamagedFileError: `eos_token_id` is neither an id nor a list of ids.
    """
    ends, (known, never) = end_ids(checkpoint), ends_by_text(texts)
    where = f"{ends_file(checkpoint)}: {KEY}"
    if eos is None:
        raise UnsupportedTokenizerError(
            f"{where}: no end token is named, so llama.cpp would use a default id",
            f"set {KEY}, or eos_token in {TOKENIZER_CONFIG}",
        )
    if lost := [texts[token] for token in ends if token in never]:
        raise UnsupportedTokenizerError(
            f"{where}: llama.cpp never stops at {lost[0]!r} with this vocabulary",
            f"remove its id from {KEY} if the model ends its answers with another token",
        )
    keys = {} if codellama_eot is None else {"eot": codellama_eot}
    free = [role for role in ("eot", "eom") if role not in keys]
    missing = [token for token in ends if token not in {*known, eos, codellama_eot}]
    if len(missing) > len(free):
        named = ", ".join(repr(texts.get(token, str(token)))[:40] for token in missing[:6])
        raise UnsupportedTokenizerError(
            f"{where}: llama.cpp does not know {len(missing)} of these tokens as ends ({named}), "
            f"and a GGUF can name only {len(free)} of them",
            "remove the ids that the model does not need",
        )
    return keys | dict(zip(free, missing, strict=False))
