"""The tokens at which Transformers and llama.cpp stop generating.

Transformers stops at `eos_token_id` of generation_config.json, or of config.json if the former does not exist.
llama.cpp stops at the tokens that three keys of the GGUF name, and at tokens that it recognises by their text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compact.base.errors import DamagedFileError
from compact.base.files import read_json_object, write_json
from compact.checkpoints.names import CONFIG, GENERATION_CONFIG

KEY = "eos_token_id"
_OTHER_IDS = ("bos_token_id", "pad_token_id")
# From llama.cpp's src/llama-vocab.cpp (llama-cpp-python 0.3.36), "maintain a list of tokens that cause
# end-of-generation". Its tokens for filling in the middle are left out: no model ends a turn with them.
END_TEXTS = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
        *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"),
        *("<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
    }
)


def end_ids(directory: Path) -> tuple[int, ...]:
    """Return the ids at which `generate` of Transformers stops, in the order of the file, each once.

    Negative ids, which no model generates, are left out.

    Args:
        directory: a checkpoint of a language model.

    Raises:
        DamagedFileError: `eos_token_id` is neither an id nor a list of ids.
    """
    path = ends_file(directory)
    return _ends(read_json_object(path), path)


def ends_file(directory: Path) -> Path:
    """Return the file in which Transformers looks for `eos_token_id`."""
    path = directory / GENERATION_CONFIG
    return path if path.is_file() else directory / CONFIG


def settle_end_ids(source: Mapping[str, Any], made: Mapping[str, Any], target: Path) -> None:
    """Write a generation_config.json if the new config.json would make `generate` stop where the source does not.

    Without generation_config.json, `generate` stops at `eos_token_id` of config.json. If the source's config.json lacks
    this key, there is no end. The new config.json may have it, because Transformers writes the default of the class.
    The generation_config.json that is then written has no `eos_token_id`.

    Args:
        source: config.json of the source.
        made: the new config.json.
        target: directory of the new checkpoint.
    """
    if source.get(KEY) is None and made.get(KEY) is not None and not (target / GENERATION_CONFIG).is_file():
        write_json(target / GENERATION_CONFIG, {key: made[key] for key in _OTHER_IDS if source.get(key) is not None})


def check_end_ids(directory: Path, vocab_size: int) -> None:
    """Check `eos_token_id` of generation_config.json and config.json.

    Args:
        directory: a checkpoint of a language model.
        vocab_size: rows of the embedding.

    Raises:
        DamagedFileError: a value is neither an id nor a list of ids, or an id has no row in the embedding.
    """
    for path in (directory / GENERATION_CONFIG, directory / CONFIG):
        for token in _ends(read_json_object(path), path) if path.is_file() else ():
            if token >= vocab_size:
                raise DamagedFileError(
                    f"{path}: {KEY} has the id {token}, but the embedding has only {vocab_size} rows",
                    "correct the id, or remove it",
                )


def _ends(config: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    value = config.get(KEY)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in values):
        raise DamagedFileError(
            f"{path}: {KEY} = {str(value)[:60]!r} is neither a token id nor a list of token ids",
            "correct it, or remove it",
        )
    return tuple(dict.fromkeys(token for token in values if token >= 0))


def ends_by_text(texts: Mapping[int, str]) -> tuple[set[int], set[int]]:
    """Return (ids at which llama.cpp stops because of their text, ids at which it never stops).

    Args:
        texts: id -> text of every token.
    """
    found = {text: token for token, text in texts.items() if text in END_TEXTS}
    never: set[str] = set()
    # Two exceptions of llama.cpp: in these vocabularies, a token that usually ends a turn does not.
    call = bool({"<|call|>", "<|calls|>"} & found.keys())
    if (call and "<|flush|>" in found) or (call and "<|return|>" in found):
        never.add("<|end|>")
    if "<|tool_response>" in found:
        never.add("</s>")
    ids = {token for text, token in found.items() if text not in never}
    return ids, {token for text, token in found.items() if text in never}
