"""Open the training texts by name: files, built-in texts, Hub data sets, or text that the model writes."""

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

# Characters per piece of text. In most languages that a vocabulary was made for, this is about 256 tokens.
PIECE_CHARACTERS = 4 * PIECE_TOKENS
# Number of tokens that the model writes for `self`. The model writes enough for its share of the budget, up to a
# maximum. If the budget needs more, the text is used again. The minimum is enough to hold out a piece.
# On a CPU, writing takes as long as learning. With a budget in minutes, the model therefore writes only a part there,
# and the text is used again.
_LEAST_SELF_TOKENS, _MOST_SELF_TOKENS = 2048, 131_072
_SELF_TOKENS_PER_MINUTE = 1000
# Number of tokens to draw from the Hub for a budget in minutes, which does not say how many tokens will be used. It is
# smaller for a CPU: training is slow there, and everything that is drawn must be downloaded.
_HUB_TOKENS_CPU = 1_000_000
_HUB_TOKENS = 10_000_000
_CHARACTERS_PER_TOKEN = 4
# Longest part of a Hub document that is used, in characters.
_HUB_DOCUMENT = 4 * PIECE_CHARACTERS


def training_text(
    source: ModelSource, options: RecoverOptions, cache: Cache, *, seed: int, device: str, progress: Progress = SILENT
) -> TrainingText:
    """Open the texts that the options name.

    Args:
        source: the checkpoint. It writes the text of `self`.
        options: the names of the texts, and the budget.
        cache: stores text from the Hub and text that the model writes.
        seed: random seed of the order, and of the choice of documents.
        device: device that the model is trained on, already resolved.
        progress: receives progress of downloading and writing text.

    Raises:
        CompactEdgeError: an error of `check_texts` or of `compact.calibration.hub_dataset.draw_documents`.
    """
    check_texts(options.text)
    sources: dict[str, Documents] = {}
    for name in options.text:
        if name == calibrating.STDLIB:
            kept_out, others = stdlib_text.apart(held_out_characters(len(options.text)))
            sources[name] = in_memory(["\n\n".join(others)], kept_out=kept_out)
        elif name == calibrating.STDLIB_PROSE:
            # Docstrings are short, so join them to fill the pieces.
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
    """Return how many tokens the model must write for `self`."""
    wanted = [_MOST_SELF_TOKENS]
    if options.tokens is not None:
        wanted.append(-(-options.tokens // len(options.text)))
    if options.seconds is not None and device == "cpu":
        wanted.append(int(options.seconds * _SELF_TOKENS_PER_MINUTE / 60))
    return max(_LEAST_SELF_TOKENS, min(wanted))
