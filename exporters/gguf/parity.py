"""The parity gate of a GGUF: llama.cpp on the file is compared with Transformers on the checkpoint.

llama.cpp reads the finished file in a child process. The gate compares token ids, tensors, logits or mean KL, and
greedy text. Every check reports what it compared. A failed check fails the build.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers

from compact.base.errors import UnsupportedTokenizerError
from compact.base.progress import SILENT, Progress
from compact.vocabulary.loading import tokenizer_document
from compact.vocabulary.pretokenizers import loses_nfc, pre_name
from compact.vocabulary.sentencepiece_bpe import is_sentencepiece_bpe, space_prefix, tokenizer_parts
from compact.vocabulary.tokenizer import load_tokenizer
from exporters.gate import (
    MEMORY_SHARE,
    POSITIONS,
    Check,
    ParityReport,
    check_float32,
    check_kl,
    fits_in_memory,
    generate_ends,
    hf_ids,
    mean_kl,
    reference_for,
    tokenizer_check,
)
from exporters.gguf.chat_check import check_chat
from exporters.gguf.known_differences import explained
from exporters.gguf.low_memory_checks import check_first_layers, check_tensors
from exporters.gguf_writer.write import write_gguf
from exporters.llamacpp.engine import LlamaEngine
from exporters.tokenizer_probe_texts import probe_texts


def compare_ids(directory: Path, engine: LlamaEngine, texts: Sequence[str]) -> list[tuple[int, bool]]:
    """Return (index, parse_special) for every text whose ids from llama.cpp and the HF tokenizer differ."""
    tokenizer = load_tokenizer(directory)
    different: list[tuple[int, bool]] = []
    for parse_special in (True, False):
        ours = hf_ids(tokenizer, texts, parse_special=parse_special)
        theirs = engine.tokenize(texts, parse_special=parse_special)
        different += [(n, parse_special) for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    return different


def check_tokenizer(
    checkpoint: Path, artifact: Path, texts: Iterable[str], *, unpruned: Path | None, pre: str | None = None
) -> Check:
    """Check that llama.cpp and the HF tokenizer give the same token ids on the probe texts and on `texts`.

    Some differences are the runtime's own. They are counted and listed, but do not fail the check:
    - those that disappear when both handle the text alike (llama.cpp has no NFC, and its own rule for the space before
      a text);
    - those that `exporters.gguf.known_differences` explains;
    - those that the *unpruned* checkpoint and its GGUF have too.

    Args:
        checkpoint: the (pruned) checkpoint directory.
        artifact: its GGUF.
        texts: additional texts, those of the calibration.
        unpruned: checkpoint directory of the source; None if there is none. Then only the other rules apply.
        pre: `tokenizer.ggml.pre` for the GGUF of the unpruned checkpoint.
    """
    with LlamaEngine(artifact, vocab_only=True) as engine:
        return _check_ids(checkpoint, engine, texts, unpruned, pre)


def _check_ids(
    checkpoint: Path, engine: LlamaEngine, texts: Iterable[str], unpruned: Path | None, pre: str | None
) -> Check:
    specials = list(load_tokenizer(checkpoint).get_added_vocab())
    every = [*probe_texts(specials), *texts]
    different = compare_ids(checkpoint, engine, every)
    own = _text_handling(checkpoint, engine, every, different)
    unexplained = [entry for entry in different if entry not in own]
    if unexplained and unpruned is not None and not _named_by_user(unpruned, pre):
        own |= _runtime_differences(unpruned, every, unexplained, pre)
    left = [entry for entry in unexplained if entry not in own]
    known = explained(load_tokenizer(checkpoint).backend_tokenizer, engine, every, left)
    own |= known.keys()
    failed = sorted({n for entry in unexplained if entry not in own for n in entry[:1]})
    excused = sorted({n for n, _ in own} - set(failed))
    how = "with and without special tokens"
    names = f"by a known rule ({'; '.join(sorted(set(known.values())) or ['how it handles text'])})"
    also = "for the unpruned model too"
    shown_by = names if unpruned is None else f"{also}, or {names}" if known else also
    return tokenizer_check(every, failed, excused, how, "llama.cpp", shown_by)


def _text_handling(
    checkpoint: Path, engine: LlamaEngine, texts: Sequence[str], candidates: Sequence[tuple[int, bool]]
) -> set[tuple[int, bool]]:
    """Return the candidates whose ids agree when both tokenizers handle the text alike.

    llama.cpp has no NFC. With a SentencePiece vocabulary, it also puts a space before the text that follows a special
    token. Metaspace may add the space only at the start of the text, or not before a text that begins with a space.
    """
    if not candidates:
        return set()
    backend = load_tokenizer(checkpoint).backend_tokenizer
    document = json.loads(backend.to_str())
    nfc = loses_nfc(document)
    if is_sentencepiece_bpe(document) and space_prefix(document):
        parts = tokenizer_parts(prefix=True)
        document |= {key: parts[key] for key in ("normalizer", "pre_tokenizer")}
        backend = tokenizers.Tokenizer.from_str(json.dumps(document))
    elif not nfc:
        return set()
    explained: set[tuple[int, bool]] = set()
    for n, parse_special in candidates:
        backend.encode_special_tokens = not parse_special
        ours = list(backend.encode(texts[n], add_special_tokens=False).ids)
        text = backend.normalizer.normalize_str(texts[n]) if nfc else texts[n]
        if engine.tokenize([text], parse_special=parse_special) == [ours]:
            explained.add((n, parse_special))
    return explained


def _named_by_user(unpruned: Path, pre: str | None) -> bool:
    """Return whether the pre-tokenizer comes from `--pre` and not from tokenizer.json.

    A wrong name is wrong in the GGUF of the unpruned model too, so that model excuses nothing.
    """
    if pre is None:
        return False
    try:
        return pre != pre_name(tokenizer_document(unpruned))
    except UnsupportedTokenizerError:
        return True


def _runtime_differences(
    unpruned: Path, texts: Sequence[str], candidates: Sequence[tuple[int, bool]], pre: str | None
) -> set[tuple[int, bool]]:
    """Return the candidates whose ids also differ between the unpruned checkpoint and its GGUF."""
    wanted = sorted({n for n, _ in candidates})
    with tempfile.TemporaryDirectory(prefix="compact-edge-") as scratch:
        vocabulary = Path(scratch) / "vocabulary.gguf"
        write_gguf(unpruned, vocabulary, "F32", pre=pre, vocab_only=True)
        with LlamaEngine(vocabulary, vocab_only=True) as engine:
            found = compare_ids(unpruned, engine, [texts[n] for n in wanted])
    return {(wanted[n], special) for n, special in found} & set(candidates)


def check_ends(checkpoint: Path, engine: LlamaEngine) -> Check:
    """Check that llama.cpp stops at every token at which `generate` of Transformers stops.

    At some other tokens llama.cpp stops too, because of their text. They are listed, but do not fail the check.
    """
    wanted = [token for token in generate_ends(checkpoint) if token < engine.n_vocab]
    missing = [token for token in wanted if token not in engine.eog]
    others = [token for token in engine.eog if token not in wanted]
    figures = {"ends": len(wanted), "missing": missing, "others": others}
    if missing:
        return Check("ends", False, f"llama.cpp does not stop at {_texts(engine, missing)}", figures)
    detail = f"llama.cpp stops at {_texts(engine, wanted)}" if wanted else "the model names no end token"
    if others:
        detail += f"; it stops at {_texts(engine, others)} too, by its own rules"
    return Check("ends", True, detail, figures)


def _texts(engine: LlamaEngine, tokens: Sequence[int]) -> str:
    return ", ".join(repr(engine.detokenize([token]).decode("utf-8", "replace"))[:40] for token in tokens)


def check_artifact(
    checkpoint: Path,
    artifact: Path,
    quant: str,
    texts: Sequence[str],
    *,
    unpruned: Path | None,
    baseline_kl: float | None,
    pre: str | None = None,
    progress: Progress = SILENT,
) -> ParityReport:
    """Run the whole gate on a finished GGUF.

    Args:
        checkpoint: the checkpoint that the artifact was exported from.
        artifact: the GGUF.
        quant: its type.
        texts: calibration texts.
        unpruned: checkpoint of the source; None if `checkpoint` is unpruned.
        baseline_kl: mean KL of the unpruned artifact at the same type; None if it was not measured.
        pre: `tokenizer.ggml.pre`.
        progress: shows the checks.
    """
    with progress.task("parity gate", 3, "checks") as task:
        with LlamaEngine(artifact, vocab_only=True) as vocabulary:
            tokenizer = _check_ids(checkpoint, vocabulary, texts, unpruned, pre)
            ends = check_ends(checkpoint, vocabulary)
            chat = check_chat(checkpoint, load_tokenizer(checkpoint), vocabulary, unpruned)
        task.advance()
        tensors = check_tensors(checkpoint, artifact)
        task.advance()
        static = (tokenizer, ends, *chat, tensors)
        if not fits_in_memory(checkpoint, artifact.stat().st_size, MEMORY_SHARE):
            return ParityReport((*static, *check_first_layers(checkpoint, texts, pre)), partial=True)
        reference = reference_for(checkpoint, texts, greedy=quant == "F32")
        with LlamaEngine(artifact, n_ctx=POSITIONS) as engine:
            if quant == "F32":
                checks = check_float32(reference, engine)
            else:
                checks = [check_kl(mean_kl(reference, engine), quant, baseline_kl)]
        task.advance()
    return ParityReport((*static, *checks))
