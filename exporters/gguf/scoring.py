"""Measures bits per byte, speed and memory of a GGUF in llama.cpp."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from compact.base.progress import SILENT, Progress
from compact.forward.evaluate import DEFAULT_WINDOW, Evaluation, TextScorer, evaluate
from exporters.format_values import Measurements, Variant
from exporters.llamacpp.engine import LlamaEngine
from exporters.short_run import short_run


@contextmanager
def open_gguf(
    path: Path, *, threads: int, window: int | None = None, pre: str | None = None
) -> Iterator[tuple[TextScorer, LlamaEngine]]:
    """Open a GGUF in llama.cpp with a context of one window. Yields the scorer and its engine.

    `pre` is the pre-tokenizer to use instead of the file's own.

    Raises the errors of `LlamaEngine`.
    """
    with LlamaEngine(path, vocab_only=True, pre=pre) as vocabulary:
        architecture = vocabulary.metadata["general.architecture"]
        positions = int(vocabulary.metadata[f"{architecture}.context_length"])
    size = min(window or DEFAULT_WINDOW, positions)
    with LlamaEngine(path, n_ctx=size, n_threads=threads, pre=pre) as engine:
        bos = engine.bos if engine.add_bos else None
        yield TextScorer(lambda text: engine.tokenize([text], parse_special=True)[0], engine.score, bos, size), engine


def evaluate_gguf(
    path: Path,
    text: str,
    *,
    threads: int,
    progress: Progress,
    window: int | None = None,
    label: str = "evaluating",
    pre: str | None = None,
) -> Evaluation:
    """Measure bits per byte of a GGUF in llama.cpp, with its own tokenizer and the same windows as for a checkpoint."""
    with open_gguf(path, threads=threads, window=window, pre=pre) as opened:
        return score_texts(opened, {label: text}, progress=progress)[label]


def score_texts(
    opened: tuple[TextScorer, LlamaEngine], texts: Mapping[str, str], *, progress: Progress = SILENT
) -> dict[str, Evaluation]:
    """Measure bits per byte of an open GGUF on several texts. The names of the texts label the progress."""
    model, engine = opened
    found = {}
    for name, text in texts.items():
        ids = model.encode(text)
        first = engine.detokenize(ids[:1])
        found[name] = evaluate(
            ids,
            text,
            model.score,
            bos=model.bos,
            # A space that llama.cpp adds is not part of the text.
            first_token_bytes=len(first) - (engine.adds_space and first.startswith(b" ")),
            window=model.window,
            progress=progress,
            label=name,
        )
    return found


def measure_gguf(variant: Variant, text: str, prompt: str | None, threads: int) -> Measurements:
    """Measure speed and memory of llama.cpp on the evaluation text, and get the reply to a prompt."""
    run = short_run(variant.checkpoint, text)
    with LlamaEngine(variant.artifact.path, n_ctx=run.context, n_threads=threads) as engine:
        speed = run.speed(engine.speed)
        reply = None
        if prompt is not None:
            answer = engine.generate(run.prompt(prompt), run.reply_tokens, stop=engine.eog)
            kept = [i for i in answer.ids if i not in engine.eog]
            reply = engine.detokenize(kept).decode("utf-8", "replace").strip()
    return Measurements(speed, run.characters_per_token, reply)
