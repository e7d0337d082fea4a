"""Make and score artifacts during a search. Only the scores are kept."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from compact.base.cache import Cache
from compact.base.errors import DamagedFileError, ToolUnavailableError
from compact.base.files import read_json_object, sha256_json, write_json
from compact.base.progress import SILENT
from compact.decide import PRUNE_VERSION
from compact.pruning.apply import prune
from compact.pruning.budget import Sizes
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.plan import PrunePlan
from compact.pruning.planning import make_plan
from compact.search.size_evaluator import TextScore
from exporters.base import Format
from exporters.format_values import PRUNED, Request

# Increase this when equal inputs give other scores.
_VERSION = 1


class Trials:
    """Scores artifacts of one model at any size and type, as a build would make them without repair or training.

    The importance matrix is the unpruned model's. A build measures the pruned model's, which differs slightly.
    """

    def __init__(self, context: Context, original: Request, texts: Mapping[str, str], *, threads: int) -> None:
        """Prepare trials.

        Args:
            context: the model, the options and the calibration. The cache stores the scores.
            original: the request for the unpruned model's artifact.
            texts: the texts to score, by name.
            threads: threads of the runtime.
        """
        self._context, self._original, self._texts, self._threads = context, original, dict(texts), threads
        self._stack = ExitStack()
        self._sizes: Sizes | None = None
        self._checkpoint = original.checkpoint
        self._plans: dict[Sizes, PrunePlan] = {}

    def __enter__(self) -> Trials:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def score(self, sizes: Sizes, artifact_format: Format) -> dict[str, TextScore]:
        """Return the scores of an artifact, from the cache if possible.

        Raises:
            ToolUnavailableError: the runtime cannot open the artifact on this machine.
            CompactEdgeError: an error of making or scoring the artifact.
        """
        plan = self._plan(sizes)
        key = sha256_json(
            {
                "version": _VERSION,
                "prune": PRUNE_VERSION,
                "source": self._context.source.id,
                "kept": sha256_json([plan.kept_token_ids, plan.kept_channels]),
                "calibration": self._original.calibration.id,
                "format": artifact_format.manifest_recipe(has_imatrix=artifact_format.uses_imatrix),
                "versions": artifact_format.versions(),
                "texts": sha256_json([[name, text] for name, text in self._texts.items()]),
            }
        )

        def make(work: Path) -> None:
            scores = self._score(sizes, plan, artifact_format)
            write_json(work / "scores.json", {name: asdict(score) for name, score in scores.items()})

        path = self._context.cache.get_or_make("trial", key, make) / "scores.json"
        try:
            return {name: TextScore(**value) for name, value in read_json_object(path).items()}
        except TypeError as error:
            raise DamagedFileError(f"{path}: not a valid search score", "delete the cache") from error

    def _plan(self, sizes: Sizes) -> PrunePlan:
        if sizes not in self._plans:
            options: PruneOptions = self._context.options
            self._plans[sizes] = make_plan(self._context.with_options(replace(options, channel_grid=1)), sizes)
        return self._plans[sizes]

    def _score(self, sizes: Sizes, plan: PrunePlan, artifact_format: Format) -> dict[str, TextScore]:
        self._prune(sizes, plan)
        return self.score_checkpoint(self._checkpoint, plan.id, plan, artifact_format)

    def score_checkpoint(
        self, checkpoint: Path, checkpoint_id: str, plan: PrunePlan, artifact_format: Format
    ) -> dict[str, TextScore]:
        """Make and score the artifact of a pruned checkpoint.

        Args:
            checkpoint: the checkpoint.
            checkpoint_id: hash of its content.
            plan: the plan that it was made from.
            artifact_format: the format and its type.
        """
        with tempfile.TemporaryDirectory(prefix="trial-", dir=self._context.cache.root) as folder:
            work = Path(folder)
            trial = artifact_format.for_trial(plan.kept_channels, self._original, work, self._context.cache, SILENT)
            request = replace(
                self._original, label=PRUNED, checkpoint=checkpoint, checkpoint_id=checkpoint_id, published=False
            )
            artifact = trial.make(request, Cache(work / "cache", [], []), SILENT)
            found = {}
            for name, text in self._texts.items():
                score = trial.evaluate(artifact, text, threads=self._threads, progress=SILENT, label=name)
                if score is None:
                    raise ToolUnavailableError(
                        f"{trial.quant}: the runtime cannot open this file here, so types cannot be compared",
                        "name a type with --quant",
                    )
                found[name] = TextScore(score.bits_per_byte, score.n_tokens, score.n_characters)
            return found

    def _prune(self, sizes: Sizes, plan: PrunePlan) -> None:
        """Make the checkpoint of these sizes. The last one is kept, because several types are tried at a size."""
        if self._sizes == sizes:
            return
        self._stack.close()
        whole = Sizes(self._context.source.vocab_size, self._context.source.intermediate_size)
        self._checkpoint = self._original.checkpoint
        if sizes != whole:
            folder = self._stack.enter_context(
                tempfile.TemporaryDirectory(prefix="trial-", dir=self._context.cache.root)
            )
            prune(self._context.source, plan, Path(folder))
            self._checkpoint = Path(folder)
        self._sizes = sizes
