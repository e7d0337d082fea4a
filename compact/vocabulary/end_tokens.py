"""The tokens that end a generated text, in Transformers and in llama.cpp.

Transformers stops at `eos_token_id` of generation_config.json. Only without that file does it use config.json.
llama.cpp stops at the tokens of three keys of the GGUF, and at tokens that it knows by their text.
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
_END_TEXTS = frozenset(
    {
        *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>"),
        *("<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>"),
        *("<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~["),
    }
)


def end_ids(directory: Path) -> tuple[int, ...]:
    """Return the ids at which Transformers' `generate` stops, in the order of the file, without repetitions.

    Negative ids, which no model generates, are left out.

    Args:
        directory: a checkpoint of a language model.

    Raises:
        DamagedFileError: `eos_token_id` is neither an id nor a list of ids.
    """
    path = directory / GENERATION_CONFIG
    path = path if path.is_file() else directory / CONFIG
    return _ends(read_json_object(path), path)


def settle_end_ids(source: Mapping[str, Any], made: Mapping[str, Any], target: Path) -> None:
    """Keep the ends of `generate` for a checkpoint without generation_config.json whose config.json got default ids.

    Without that file, `generate` takes its ends from the keys that config.json has, and from no default of the class.
    If a new config.json has an end that the source's did not have, write a generation_config.json without it.

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
        DamagedFileError: it is neither an id nor a list of ids, or an id has no row in the embedding.
    """
    for path in (directory / GENERATION_CONFIG, directory / CONFIG):
        for token in _ends(read_json_object(path), path) if path.is_file() else ():
            if token >= vocab_size:
                raise DamagedFileError(
                    f"{path}: {KEY} has {token}, but the embedding has {vocab_size} rows",
                    "correct the id, or remove it",
                )


def _ends(config: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    value = config.get(KEY)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) for token in values):
        raise DamagedFileError(f"{path}: {KEY} = {str(value)[:60]!r} is neither a token id nor a list of token ids")
    return tuple(dict.fromkeys(token for token in values if token >= 0))


def ends_by_text(texts: Mapping[int, str]) -> tuple[set[int], set[int]]:
    """Return (ids that llama.cpp takes for ends because of their text, ids at which it never stops).

    Args:
        texts: id -> text of every token.
    """
    found = {text: token for token, text in texts.items() if text in _END_TEXTS}
    never: set[str] = set()
    # Two exceptions of llama.cpp: in these vocabularies, a text that usually ends a turn does not.
    call = bool({"<|call|>", "<|calls|>"} & found.keys())
    if (call and "<|flush|>" in found) or (call and "<|return|>" in found):
        never.add("<|end|>")
    if "<|tool_response>" in found:
        never.add("</s>")
    ids = {token for text, token in found.items() if text not in never}
    return ids, {token for text, token in found.items() if text in never}
