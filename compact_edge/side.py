"""One side of the comparison: a checkpoint, its artifact, and what was measured of them.

Both sides, before and after pruning, go through the same functions with the same text, type and threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.cache import Cache
from compact.checkpoint import read_index
from compact.checkpoint_names import CONFIG
from compact.evaluate import DEFAULT_WINDOW, Evaluation, TextScorer, evaluate, evaluate_checkpoint
from compact.families import family_of
from compact.progress import Progress
from compact.store import read_json_object, sha256_json, write_json
from compact.tokenizer import bos_id, encode, load_tokenizer
from compact_edge.formats import Artifact, Format
from exporters.engine import LlamaEngine, Speed

# Raised when an evaluation means something else for equal inputs.
_EVALUATION_VERSION = 1
SPEED_PROMPT_TOKENS = 256
SPEED_DECODE_TOKENS = 64
# The median run by decode time is reported: one run alone is at the mercy of whatever else the machine does.
SPEED_RUNS = 3
REPLY_TOKENS = 120


@dataclass(frozen=True)
class Side:
    """A checkpoint with a name for its content."""

    label: str
    checkpoint: Path
    checkpoint_id: str
    artifact: Artifact

    @property
    def n_params(self) -> int:
        return sum(ref.n_elements for ref in read_index(self.checkpoint).values())


@dataclass(frozen=True)
class Measured:
    """What a short run on this machine gave (no part of any manifest).

    Attributes:
        speed: prefill and decode of the artifact's runtime on the evaluation text, the median of three runs.
        characters_per_token: of the evaluation text with this side's tokenizer.
        reply: answer to the prompt, None where none was asked for.
    """

    speed: Speed
    characters_per_token: float
    reply: str | None

    @property
    def prefill(self) -> float:
        """Tokens per second."""
        return self.speed.prefill_tokens / self.speed.prefill_seconds

    @property
    def decode(self) -> float:
        """Tokens per second."""
        return self.speed.decode_tokens / self.speed.decode_seconds

    def as_dict(self) -> dict[str, Any]:
        return {
            "resident_bytes": self.speed.resident_bytes,
            "prefill_tokens_per_second": self.prefill,
            "decode_tokens_per_second": self.decode,
            "decode_characters_per_second": self.decode * self.characters_per_token,
            "reply": self.reply,
        }


def cached_value(cache: Cache, kind: str, key: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A small JSON result through the cache."""
    directory = cache.get_or_make(kind, sha256_json(key), lambda work: write_json(work / "value.json", make()))
    return read_json_object(directory / "value.json")


def evaluate_side(
    form: Format, side: Side, text: str, cache: Cache, *, device: str, dtype: str, threads: int, progress: Progress
) -> tuple[Evaluation, Evaluation | None]:
    """Bits per byte of the checkpoint in `dtype` (Transformers) and of the artifact (its runtime), on one text.

    The second is None where the runtime cannot open the artifact on this machine.
    """
    key = {"version": _EVALUATION_VERSION, "text": sha256_json(text), "window": DEFAULT_WINDOW}
    checkpoint = cached_value(
        cache,
        "evaluation",
        {**key, "checkpoint": side.checkpoint_id, "device": device, "dtype": dtype},
        lambda: evaluate_checkpoint(
            side.checkpoint,
            text,
            device=device,
            dtype=dtype,
            progress=progress,
            label=f"bits per byte, {side.label} {dtype}",
        ).as_dict(),
    )

    def measure() -> dict[str, Any]:
        label = f"bits per byte, {side.label} {side.artifact.quant}"
        found = form.evaluate(side.artifact, text, threads=threads, progress=progress, label=label)
        return {"evaluation": None if found is None else found.as_dict()}

    artifact = cached_value(
        cache, "evaluation", {**key, "artifact": side.artifact.sha256, "engine": form.versions()}, measure
    )["evaluation"]
    return Evaluation(**checkpoint), None if artifact is None else Evaluation(**artifact)


@contextmanager
def open_gguf(path: Path, *, threads: int, window: int | None = None) -> Iterator[tuple[TextScorer, LlamaEngine]]:
    """Open a GGUF in llama.cpp with a context of one window; the scorer, and the engine that it uses.

    Raises what `LlamaEngine` raises.
    """
    with LlamaEngine(path, vocab_only=True) as vocabulary:
        architecture = vocabulary.metadata["general.architecture"]
        positions = int(vocabulary.metadata[f"{architecture}.context_length"])
    size = min(window or DEFAULT_WINDOW, positions)
    with LlamaEngine(path, n_ctx=size, n_threads=threads) as engine:
        bos = engine.bos if engine.add_bos else None
        yield TextScorer(lambda text: engine.tokenize([text], parse_special=True)[0], engine.score, bos, size), engine


def evaluate_gguf(
    path: Path, text: str, *, threads: int, progress: Progress, window: int | None = None, label: str = "evaluating"
) -> Evaluation:
    """Bits per byte of a GGUF through llama.cpp: its own tokenizer, the same windows as for a checkpoint."""
    with open_gguf(path, threads=threads, window=window) as (model, engine):
        # llama.cpp puts a space in front of a text for this kind of vocabulary; it is no byte of the text.
        kind, prefix = (engine.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "add_space_prefix"))
        put_in_front = kind == "llama" and prefix != "false"
        ids = model.encode(text)
        first = engine.detokenize(ids[:1])
        return evaluate(
            ids,
            text,
            model.score,
            bos=model.bos,
            first_token_bytes=len(first) - (put_in_front and first.startswith(b" ")),
            window=model.window,
            progress=progress,
            label=label,
        )


@dataclass(frozen=True)
class ShortRun:
    """What a short run feeds: the same text for both sides, in each side's own tokens.

    Attributes:
        tokenizer: the checkpoint's.
        ids: the prompt of the speed runs.
        decode_tokens: tokens after it.
        context: positions that the runtime is opened with.
        characters_per_token: of the whole text.
    """

    tokenizer: Any
    ids: Sequence[int]
    decode_tokens: int
    context: int
    characters_per_token: float

    def speed(self, run: Callable[[Sequence[int], int], Speed]) -> Speed:
        """The median of a few runs by decode time."""
        runs = [run(self.ids, self.decode_tokens) for _ in range(SPEED_RUNS)]
        return sorted(runs, key=lambda speed: speed.decode_seconds)[SPEED_RUNS // 2]

    @property
    def reply_tokens(self) -> int:
        """Most tokens of a reply."""
        return min(REPLY_TOKENS, self.context // 2)

    def prompt(self, prompt: str) -> list[int]:
        """The ids of a prompt, its end where it is long."""
        return prompt_ids(self.tokenizer, prompt)[-(self.context - self.reply_tokens) :]


def short_run(side: Side, text: str) -> ShortRun:
    """Prepare a short run on the evaluation text."""
    tokenizer = load_tokenizer(side.checkpoint)
    ids = encode(tokenizer, [text], add_special_tokens=False)[0]
    config = read_json_object(side.checkpoint / CONFIG)
    context = min(1024, int(config.get("max_position_embeddings") or 1024))
    decode_tokens = min(SPEED_DECODE_TOKENS, context // 2)
    # onnxruntime-genai wants room for the token that follows the last one fed.
    prompt_tokens = min(SPEED_PROMPT_TOKENS, len(ids), context - decode_tokens - 1)
    return ShortRun(tokenizer, ids[:prompt_tokens], decode_tokens, context, len(text) / len(ids))


def measure_gguf(side: Side, text: str, prompt: str | None, threads: int) -> Measured:
    """A short run of llama.cpp: speed and memory on the evaluation text, and the reply to a prompt."""
    run = short_run(side, text)
    with LlamaEngine(side.artifact.path, n_ctx=run.context, n_threads=threads) as engine:
        speed = run.speed(engine.speed)
        reply = None
        if prompt is not None:
            answer = engine.generate(run.prompt(prompt), run.reply_tokens, stop=engine.eog)
            kept = [i for i in answer.ids if i not in engine.eog]
            reply = engine.detokenize(kept).decode("utf-8", "replace").strip()
    return Measured(speed, run.characters_per_token, reply)


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """The prompt through the chat template where the model has one, as plain text else."""
    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        return encode(tokenizer, [text], add_special_tokens=False)[0]
    bos = bos_id(tokenizer)
    return [*([] if bos is None else [bos]), *encode(tokenizer, [prompt], add_special_tokens=False)[0]]


def sizes_by_part(checkpoint: Path) -> dict[str, int]:
    """Parameters by part of a checkpoint directory."""
    from compact.budget import count_parts

    config = read_json_object(checkpoint / CONFIG)
    tensors = read_index(checkpoint)
    if family_of(config, str(checkpoint / CONFIG)).tied(config):
        tensors.pop("lm_head.weight", None)
    return count_parts(tensors, config).as_dict()


def row_lengths(config: Mapping[str, Any]) -> Sequence[int]:
    """Row lengths of a model's matrices that pruning keeps: hidden size, and the heads' width."""
    head_dim = family_of(config, CONFIG).head_dim_of(config)
    return int(config["hidden_size"]), int(config["num_attention_heads"]) * head_dim
