"""From the names of texts to what is learned from: files, built-in texts, Hub data sets, what the model writes."""

from __future__ import annotations

from pathlib import Path

from compact.base.cache import Cache
from compact.base.progress import SILENT, Progress
from compact.calibration import calibration_set as calibrating
from compact.calibration.hub_dataset import draw_documents, names_hub_dataset, parse_dataset
from compact.calibration.sampling import SAMPLE_LENGTH, sample_texts
from compact.distill.text import Documents, TrainingText, check_texts, file_documents, held_out_characters, in_memory
from compact.pruning.recover_options import PIECE_TOKENS, RecoverOptions
from compact.sources.model_source import ModelSource
from compact.texts import stdlib_text

# Characters of a piece of text: about 512 tokens in most languages that a vocabulary was made for.
PIECE_CHARACTERS = 4 * PIECE_TOKENS
# What the model writes itself where `self` is among the texts: enough for its share of the budget, which on a CPU takes
# as long to write as to learn, so that there a budget in minutes gives a part of it and goes through that again. More
# than the most is the same text again; the least has a piece to keep out.
_LEAST_SELF_TOKENS, _MOST_SELF_TOKENS = 2048, 131_072
_SELF_TOKENS_PER_MINUTE = 1000
# What is drawn from the Hub for a budget in minutes, which does not say how much is gone through: a CPU is slow, and
# what is drawn is downloaded.
_HUB_TOKENS_CPU = 1_000_000
_HUB_TOKENS = 10_000_000
_CHARACTERS_PER_TOKEN = 4
# What is taken of a longer document of the Hub, in characters.
_HUB_DOCUMENT = 4 * PIECE_CHARACTERS


def training_text(
    source: ModelSource, options: RecoverOptions, cache: Cache, *, seed: int, device: str, progress: Progress = SILENT
) -> TrainingText:
    """The text that the options name.

    Args:
        source: the checkpoint; it writes the text of `self`.
        options: names, and how many tokens are learned from.
        cache: keeps what comes from the Hub or the model.
        seed: of the order, and of what is drawn.
        device: where the model learns, resolved.
        progress: told of what is drawn.

    Raises:
        CompactEdgeError: what `check_texts` and `compact.calibration.hub_dataset.draw_documents` raise.
    """
    check_texts(options.text)
    sources: dict[str, Documents] = {}
    for name in options.text:
        if name == calibrating.STDLIB:
            kept_out, others = stdlib_text.apart(held_out_characters(len(options.text)))
            sources[name] = in_memory(["\n\n".join(others)], kept_out=kept_out)
        elif name == calibrating.STDLIB_PROSE:
            # Docstrings are short: joined they fill a piece.
            sources[name] = in_memory(["\n\n".join(stdlib_text.documents("stdlib-prose"))])
        elif name == calibrating.SELF:
            sources[name] = in_memory(
                sample_texts(
                    source.directory,
                    _self_tokens(options, device),
                    sequence_length=min(SAMPLE_LENGTH, source.max_positions),
                    seed=seed,
                    device=device,
                    cache=cache,
                    source_id=source.id,
                    progress=progress,
                )
            )
        elif names_hub_dataset(name) and (dataset := parse_dataset(name)) is not None:
            tokens = options.tokens or (_HUB_TOKENS_CPU if device == "cpu" else _HUB_TOKENS)
            texts, full_name = draw_documents(
                dataset,
                _CHARACTERS_PER_TOKEN * tokens,
                _HUB_DOCUMENT,
                seed,
                option="--recover-text",
                cache=cache,
                progress=progress,
            )
            sources[name] = in_memory(texts, are_records=True, name=full_name)
        else:
            sources[name] = file_documents(Path(name))
    return TrainingText(sources, PIECE_CHARACTERS, seed)


def _self_tokens(options: RecoverOptions, device: str) -> int:
    """How many tokens the model writes where `self` is one of the texts."""
    wanted = [_MOST_SELF_TOKENS]
    if options.tokens is not None:
        wanted.append(-(-options.tokens // len(options.text)))
    if options.seconds is not None and device == "cpu":
        wanted.append(int(options.seconds * _SELF_TOKENS_PER_MINUTE / 60))
    return max(_LEAST_SELF_TOKENS, min(wanted))
