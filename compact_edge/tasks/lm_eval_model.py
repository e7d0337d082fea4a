"""Adapts a runtime to lm_eval's model interface.

Contexts and continuations are encoded as in lm_eval's Transformers model (`lm_eval.models.huggingface.HFLM`): as one
text with the tokenizer's special tokens, then split at the token length of the context alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from compact.base.errors import DataError, UsageError
from compact.base.progress import SILENT, Progress, Task
from exporters.native.prefix_groups import Branch, Score, grouped
from exporters.task_runtime import BATCH_SIZE, Runtime

# Maximum tokens in a group of sequences with a common prefix, unless a single sequence is longer.
_GROUP_TOKENS = 2048
# Maximum new tokens if a task sets no limit, as in lm_eval.
_MAX_NEW_TOKENS = 256


class TaskModel(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A model for `lm_eval.evaluator.evaluate`.

    Attributes:
        tokens_scored: input tokens so far for scoring answers. A shared prefix counts once.
        failure: exception from the runtime, if any. Other exceptions come from a task's code.
    """

    def __init__(self, runtime: Runtime, *, batch_size: int = BATCH_SIZE, progress: Progress = SILENT) -> None:
        super().__init__()
        self._runtime = runtime
        self._batch_size = batch_size
        self._progress = progress
        self.tokens_scored = 0
        self.failure: Exception | None = None

    @contextmanager
    def _working(self, description: str, total: int, unit: str) -> Iterator[Task]:
        try:
            with self._progress.task(description, total, unit) as task:
                yield task
        except Exception as error:
            self.failure = error
            raise

    @property
    def eot_token_id(self) -> int:
        """An id that lm_eval requires. The runtime's end tokens are used instead."""
        return self._runtime.prefix_token

    @property
    def max_length(self) -> int:
        """Maximum positions in a sequence."""
        return self._runtime.max_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the token ids of a text."""
        return self._runtime.encode(string, special=add_special_tokens)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return the natural-log probability of each continuation, and whether greedy decoding would produce it.

        Raises:
            DataError: a continuation has no tokens, or is longer than the model's context.
        """
        del disable_tqdm
        pairs = []
        for context, continuation in (request.args for request in requests):
            before, after = self._encoded(context, continuation)
            if not after:
                raise DataError(
                    f"a continuation has no tokens: {continuation[:80]!r} after {context[-80:]!r}",
                    "choose another task",
                )
            pairs.append((before, after))
        return self._score(pairs)

    def _encoded(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context.strip():
            before, after = self._encode_pair(context, continuation)
            if before:
                return before, after
        prefix = self._runtime.prefix_token
        ids = self._runtime.encode(context + continuation, special=False)
        # If the text starts with BOS, BOS is the context.
        return ([prefix], ids[1:]) if ids[:1] == [prefix] else ([prefix], ids)

    def _score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """Score (context, continuation) pairs of ids. A sequence that is too long is cut at the start."""
        inputs: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
        keys: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        for before, after in pairs:
            if len(after) > self.max_length:
                raise DataError(
                    f"a continuation has {len(after)} tokens, but the model has {self.max_length} positions",
                    "choose another task",
                )
            ids = tuple([*before, *after][-(self.max_length + 1) :][:-1])
            keys.append((ids, tuple(after)))
            # Single-token answers after the same context become one sequence with several targets.
            inputs.setdefault(ids, {})[tuple(after)] = None
        sequences = [Branch(ids, tuple(targets)) for ids, targets in inputs.items()]
        groups = list(grouped(sequences, max_branches=self._batch_size, max_tokens=_GROUP_TOKENS))
        total = sum(group.n_tokens for group, _ in groups)
        found: dict[tuple[tuple[int, ...], tuple[int, ...]], Score] = {}
        with self._working("scoring answers", total, "tokens") as task:
            results = self._runtime.score([group for group, _ in groups], task.advance) if groups else []
        for (_, indices), scores in zip(groups, results, strict=True):
            for index, rows in zip(indices, scores, strict=True):
                ids, targets = sequences[index].ids, sequences[index].targets
                found.update(((ids, target), score) for target, score in zip(targets, rows, strict=True))
        self.tokens_scored += total
        return [(found[key].log_probability, found[key].greedy) for key in keys]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        return self._score([(before, after) for _, before, after in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Return the natural-log probability of whole texts, each in windows of the model's context.

        As in lm_eval's Transformers model, the runtime's prefix token precedes the encoded text. If the tokenizer adds
        BOS itself, that BOS is scored too.
        """
        del disable_tqdm
        pairs: list[tuple[list[int], list[int]]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=self._runtime.encode(text),
                prefix_token=self._runtime.prefix_token,
                max_seq_len=self.max_length,
                context_len=1,
            )
            disjoint = [make_disjoint_window(window) for window in windows]
            pairs += disjoint
            counts.append(len(disjoint))
        scores = iter(self._score(pairs))
        return [sum(next(scores)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Continue prompts greedily. Cut each answer before the first stop string.

        Raises:
            UsageError: a task requires sampling.
            DataError: a task requires at least as many new tokens as the model has positions.
        """
        del disable_tqdm
        results = [""] * len(requests)
        alike: dict[tuple[tuple[str, ...], int], list[int]] = {}
        for index, request in enumerate(requests):
            alike.setdefault(self._limits(request.args[1]), []).append(index)
        with self._working("generating answers", len(requests), "answers") as task:
            for (stops, most), indices in alike.items():
                room = self.max_length - most
                prompts = [self._runtime.encode(requests[index].args[0])[-room:] for index in indices]
                prompts = [prompt or [self._runtime.prefix_token] for prompt in prompts]

                def ended(made: list[int], stops: Sequence[str] = stops) -> bool:
                    text = self._runtime.decode(made)
                    return any(stop in text for stop in stops)

                made = self._runtime.generate(prompts, most, ended, task.advance)
                for index, ids in zip(indices, made, strict=True):
                    text = self._runtime.decode(ids)
                    for stop in stops:
                        text = text.split(stop)[0]
                    results[index] = text
        return results

    def _limits(self, arguments: Any) -> tuple[tuple[str, ...], int]:
        """Return the stop strings and the maximum new tokens of a request."""
        settings = normalize_gen_kwargs(arguments, _MAX_NEW_TOKENS)
        if settings.get("do_sample") and settings.get("temperature"):
            raise UsageError("a task requires sampling, but answers are generated greedily", "choose another task")
        most = int(settings["max_gen_toks"])
        if most >= self.max_length:
            raise DataError(
                f"a task requires {most} new tokens, but the model has {self.max_length} positions",
                "choose another task",
            )
        stops = handle_stop_sequences(settings.get("until"), eos=None)
        return tuple(stop for stop in stops if stop), most
