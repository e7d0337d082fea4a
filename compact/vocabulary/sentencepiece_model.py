"""Read, prune and build tokenizer.model, the SentencePiece file next to tokenizer.json.

tokenizer.json is authoritative. Some tools prefer tokenizer.model (llama.cpp's converter, SentencePiece itself), so it
must have the same pieces with the same ids. The format is SentencePiece's protobuf, `sentencepiece_model.proto`. The
file is only parsed as data; SentencePiece's native loader never reads it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from compact.base.errors import DamagedFileError, UnsupportedTokenizerError
from compact.base.files import as_storage_error
from compact.checkpoints.names import TOKENIZER_MODEL
from compact.vocabulary.sentencepiece_bpe import BYTE_TOKENS, SPACE_MARK

_MAX_BYTES = 64 << 20
_BPE = 2  # TrainerSpec.ModelType
_SPECIAL_IDS = ("unk_id", "bos_id", "eos_id", "pad_id")


class PieceType(IntEnum):
    """ModelProto.SentencePiece.Type. `tokenizer.ggml.token_type` uses the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class SentencePieceModel:
    """A checked tokenizer.model.

    Attributes:
        pieces: text of every id.
        scores: score of every id. If two merges are possible, the one that makes the piece with the higher score comes
            first.
        types: type of every id.
        special_ids: the ids of unknown, BOS, EOS and padding that the file names.
        proto: the parsed `ModelProto`.
    """

    pieces: Sequence[str]
    scores: Sequence[float]
    types: Sequence[PieceType]
    special_ids: frozenset[int]
    proto: Any


def read_model(path: Path) -> SentencePieceModel:
    """Parse and check a tokenizer.model.

    Raises:
        DamagedFileError: the file is not a SentencePiece model, or SentencePiece itself would reject it (empty or
            repeated pieces, not exactly one unknown piece, invalid byte pieces), or a score is not finite.
        UnsupportedTokenizerError: the model is a unigram, word or character model.
        StorageError: the file cannot be read.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise DamagedFileError(
                f"{path}: {path.stat().st_size} bytes is too large for a tokenizer",
                f"remove {TOKENIZER_MODEL} if it belongs to another tokenizer",
            )
        proto.ParseFromString(path.read_bytes())
        pieces = [piece.piece for piece in proto.pieces]
    except OSError as error:
        raise as_storage_error(error, path) from error
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, "not a SentencePiece model") from error
    if not pieces or "" in pieces:
        raise _damaged(path, "no pieces, or a piece without text")
    if any(isinstance(piece, bytes) for piece in pieces):  # protobuf returns bytes for text that is not UTF-8
        raise _damaged(path, "a piece is not UTF-8")
    # Fields of newer SentencePiece versions, such as a self-test of the whole vocabulary, may be wrong after pruning.
    proto.DiscardUnknownFields()
    if proto.trainer_spec.model_type != _BPE:
        kinds = proto.trainer_spec.DESCRIPTOR.fields_by_name["model_type"].enum_type.values_by_number
        raise UnsupportedTokenizerError(
            f"{path}: a SentencePiece {kinds[proto.trainer_spec.model_type].name.lower()} model, but tokenizer.json "
            "is BPE",
            f"supported: BPE; remove {TOKENIZER_MODEL} if it belongs to another tokenizer",
        )
    return SentencePieceModel(
        pieces, [piece.score for piece in proto.pieces], _types(proto, pieces, path), _named_ids(proto), proto
    )


def _damaged(path: Path, what: str) -> DamagedFileError:
    return DamagedFileError(f"{path}: {what}", f"download the file again from its source, or remove {TOKENIZER_MODEL}")


def _types(proto: Any, pieces: Sequence[str], path: Path) -> list[PieceType]:
    types = [PieceType(piece.type) for piece in proto.pieces]
    if len(set(pieces)) != len(pieces):
        raise _damaged(path, "a piece appears twice")
    if types.count(PieceType.UNKNOWN) != 1:
        raise _damaged(path, f"{types.count(PieceType.UNKNOWN)} unknown pieces, expected exactly one")
    if not all(math.isfinite(piece.score) for piece in proto.pieces):
        raise _damaged(path, "a score is not a finite number")
    byte_pieces = {piece for piece, kind in zip(pieces, types, strict=True) if kind == PieceType.BYTE}
    if not byte_pieces <= set(BYTE_TOKENS):
        raise _damaged(path, f"{min(byte_pieces - set(BYTE_TOKENS))[:40]!r} is not a byte piece")
    return types


def _named_ids(proto: Any) -> frozenset[int]:
    named = {getattr(proto.trainer_spec, key) for key in _SPECIAL_IDS}
    unknown = {i for i, piece in enumerate(proto.pieces) if piece.type == PieceType.UNKNOWN}
    return frozenset(i for i in named | unknown if 0 <= i < len(proto.pieces))


def pruned_model(
    model: SentencePieceModel,
    kept: Sequence[int],
    tokens: Mapping[int, str],
    added: Mapping[int, Mapping[str, Any]],
    where: str,
) -> bytes:
    """Return tokenizer.model for the kept rows, in the order of their new ids.

    Args:
        model: the source's model. Texts, scores and types are kept.
        kept: source rows in ascending order. Rows beyond the model (added tokens, padding) are only in tokenizer.json.
        tokens: id -> text in the source's tokenizer.json.
        added: id -> entry of the source's `added_tokens`. An entry that renames a piece renames it here too.
        where: the file's path, for messages.

    Returns:
        The content of the file.

    Raises:
        DamagedFileError: an id has different texts in the two files, or two pieces get the same text.
    """
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.CopyFrom(model.proto)
    del proto.pieces[:]
    renamed = _renamed(model, tokens, added, where)
    for old in kept:
        if old >= len(model.pieces):
            break
        piece = proto.pieces.add()
        piece.CopyFrom(model.proto.pieces[old])
        if old in renamed:
            special = bool(added[old].get("special"))
            piece.piece, piece.type = renamed[old], int(PieceType.CONTROL if special else PieceType.USER_DEFINED)
        elif old not in tokens:
            piece.type = int(PieceType.UNUSED)  # tokenizer.json never produces this id
    _set_spec(proto, {old: new for new, old in enumerate(kept)})
    present = {piece.piece for piece in proto.pieces}
    if len(present) != len(proto.pieces):
        raise DamagedFileError(
            f"{where}: with the added tokens of tokenizer.json, two pieces have the same text",
            f"remove {TOKENIZER_MODEL} if it belongs to another tokenizer",
        )
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def _renamed(
    model: SentencePieceModel, tokens: Mapping[int, str], added: Mapping[int, Mapping[str, Any]], where: str
) -> dict[int, str]:
    """Return id -> new text, spelled as a piece, for the pieces whose text differs in tokenizer.json."""
    renamed: dict[int, str] = {}
    for i, piece in enumerate(model.pieces):
        text = tokens.get(i, piece)
        if text == piece or text.replace(" ", SPACE_MARK) == piece:
            continue
        if i not in added:
            raise DamagedFileError(
                f"{where}: id {i} is {piece[:40]!r}, but {text[:40]!r} in tokenizer.json",
                f"the files are of different tokenizers; remove {TOKENIZER_MODEL} if tokenizer.json is right",
            )
        renamed[i] = text.replace(" ", SPACE_MARK)
    return renamed


def _set_spec(proto: Any, new_id: Mapping[int, int]) -> None:
    """Update sizes, ids and symbol lists in the trainer's specification to the remaining pieces."""
    spec = proto.trainer_spec
    present = {piece.piece for piece in proto.pieces}
    spec.vocab_size = len(proto.pieces)
    for key in _SPECIAL_IDS:
        new = new_id.get(getattr(spec, key), -1)
        new = new if new < len(proto.pieces) else -1
        if new != getattr(spec, key):  # setting a field to its default would add bytes to the file
            setattr(spec, key, new)
    for name in ("control_symbols", "user_defined_symbols"):
        values = getattr(spec, name)
        remaining = [value for value in values if value in present]
        del values[:]
        values.extend(remaining)


def built_model(
    pieces: Sequence[str], scores: Sequence[float], types: Sequence[int], ids: Mapping[str, int], prefix: bool
) -> bytes | None:
    """Build a tokenizer.model from the lists of a GGUF.

    Args:
        pieces: text of every id. User-defined pieces are spelled with plain spaces.
        scores: score of every id.
        types: `PieceType` of every id.
        ids: `unk`, `bos`, `eos`, `pad` -> id. Missing roles are allowed.
        prefix: whether SentencePiece adds a space before a text.

    Returns:
        The content of the file. None if SentencePiece cannot express the vocabulary (no unknown token, or two pieces
        with the same text).
    """
    from sentencepiece import sentencepiece_model_pb2

    unknown = ids.get("unk", next((i for i, kind in enumerate(types) if kind == PieceType.UNKNOWN), None))
    if unknown is None:
        return None
    proto = sentencepiece_model_pb2.ModelProto()
    for i, (piece, score, kind) in enumerate(zip(pieces, scores, types, strict=True)):
        if i == unknown:
            kind = PieceType.UNKNOWN
        elif kind == PieceType.UNKNOWN:
            kind = PieceType.CONTROL  # SentencePiece allows only one unknown piece
        text = piece.replace(" ", SPACE_MARK) if kind == PieceType.USER_DEFINED else piece
        proto.pieces.add(piece=text, score=score, type=int(kind))
    spec = proto.trainer_spec
    spec.model_type, spec.byte_fallback, spec.vocab_size = _BPE, PieceType.BYTE in types, len(pieces)
    for key in _SPECIAL_IDS:
        role = key.removesuffix("_id")
        setattr(spec, key, unknown if role == "unk" else ids.get(role, -1))
        if role in ids or role == "unk":
            setattr(spec, f"{role}_piece", proto.pieces[getattr(spec, key)].piece)
    if len({piece.piece for piece in proto.pieces}) != len(proto.pieces):
        return None
    normalizer = proto.normalizer_spec
    normalizer.name, normalizer.add_dummy_prefix = "identity", prefix
    normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces = False, True
    data: bytes = proto.SerializeToString(deterministic=True)
    return data
