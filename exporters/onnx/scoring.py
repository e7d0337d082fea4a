"""Measures bits per byte of an ONNX folder in onnxruntime, and its speed and memory in onnxruntime-genai."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compact.base.progress import Progress
from compact.checkpoints.names import TOKENIZER
from compact.forward.evaluate import DEFAULT_WINDOW, Evaluation, TextScorer, evaluate, token_bytes
from compact.vocabulary.tokenizer import bos_id, encode, load_tokenizer
from exporters.format_values import Measurements, Variant
from exporters.onnx.folder import read_folder
from exporters.onnx.genai_engine import GenaiEngine
from exporters.onnx.ort_engine import OnnxEngine
from exporters.short_run import short_run


@contextmanager
def open_onnx(folder: Path, *, threads: int, window: int | None = None) -> Iterator[TextScorer]:
    """Open an ONNX folder in onnxruntime with a context of one window. Raises the errors of `OnnxEngine`."""
    size = min(window or DEFAULT_WINDOW, read_folder(folder).context_length)
    tokenizer = load_tokenizer(folder)
    with OnnxEngine(folder, n_ctx=size, n_threads=threads) as engine:
        yield TextScorer(
            lambda text: encode(tokenizer, [text], add_special_tokens=False)[0], engine.score, bos_id(tokenizer), size
        )


def evaluate_onnx(
    folder: Path, text: str, *, threads: int, progress: Progress, window: int | None = None, label: str = "evaluating"
) -> Evaluation:
    """Measure bits per byte of an ONNX folder in onnxruntime, with its tokenizer and the windows of a checkpoint."""
    with open_onnx(folder, threads=threads, window=window) as model:
        ids = model.encode(text)
        return evaluate(
            ids,
            text,
            model.score,
            bos=model.bos,
            first_token_bytes=token_bytes(folder / TOKENIZER, ids[0]) if ids else 0,
            window=model.window,
            progress=progress,
            label=label,
        )


def measure_onnx(variant: Variant, text: str, prompt: str | None, threads: int) -> Measurements:
    """Measure speed and memory of onnxruntime-genai on the CPU with a text, and get the reply to a prompt."""
    run = short_run(variant.checkpoint, text)
    with GenaiEngine(variant.artifact.opened, n_ctx=run.context, n_threads=threads) as engine:
        speed = run.speed(engine.speed)
        reply = None
        if prompt is not None:
            answer = engine.generate(run.prompt(prompt), run.reply_tokens, stop=engine.eog)
            reply = engine.detokenize([i for i in answer.ids if i not in engine.eog]).strip()
    return Measurements(speed, run.characters_per_token, reply)
