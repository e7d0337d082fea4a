"""`compact-edge prune` as a function: a model to a smaller Hugging Face checkpoint with its plan.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compact.base.cache import open_cache
from compact.base.distributed import is_main
from compact.base.errors import UsageError
from compact.base.files import publish, write_sums
from compact.base.licences import licence_notes, write_notice
from compact.base.progress import Progress
from compact.decide import decide
from compact.pruning.apply import prune as apply
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.plan import PrunePlan
from compact.pruning.ranking import rank_vocabulary
from compact.requested_texts import check_calibration
from compact.sources.model_source import ModelSource, open_source
from compact.vocabulary.chat_rendering import check_chat_templates
from compact.vocabulary.language_costs import LanguageCost, language_costs
from compact_edge.building import method_report, vocabulary_report
from compact_edge.building.fit import checkpoint_sizes
from compact_edge.building.options import texts_of
from compact_edge.building.pruned_from import remember
from compact_edge.building.search_report import write_plot
from compact_edge.building.variant import sizes_by_part
from compact_edge.output import check_output, existing
from exporters.card import licence_of


@dataclass(frozen=True)
class PruneResult:
    """A pruned checkpoint.

    Attributes:
        out: directory of the checkpoint.
        source: the unpruned model.
        plan: what was removed, and how it was decided. `out` has it as plan.json.
        pruning: the requested options.
        parts: number of parameters of the checkpoint by part, and their `total`.
        languages: tokens of a sample of each language, before and after.
    """

    out: Path
    source: ModelSource
    plan: PrunePlan
    pruning: PruneOptions
    parts: dict[str, int]
    languages: list[LanguageCost]

    @property
    def removed(self) -> float:
        """The removed share of all parameters, from 0 to 1."""
        return 1 - self.parts["total"] / self.source.n_params

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values for `--json`."""
        plan = self.plan
        return {
            "out": str(self.out.absolute()),
            "plan_id": plan.id,
            "vocab_size": plan.vocab_size,
            "intermediate_size": plan.intermediate_size,
            "parameters_before": self.source.n_params,
            "parameters_after": self.parts,
            "removed": self.removed,
            **method_report.as_json(plan),
            **vocabulary_report.as_json(plan),
            "search": plan.search,
        }


def prune_model(
    model: str,
    out: Path,
    options: PruneOptions,
    *,
    quant: str | None = None,
    pre: str | None = None,
    force: bool = False,
    use_cache: bool = True,
    count_languages: bool = True,
    progress: Progress,
) -> PruneResult | None:
    """Prune a model and publish the checkpoint.

    If several processes are joined (`compact.base.distributed`), all of them must make the same call.

    Args:
        model: checkpoint directory, GGUF file, Hub id or built-in model.
        out: directory to create.
        options: what to remove, and how.
        pre: llama.cpp's name of the pre-tokenizer (`open_source`).
        quant: GGUF type whose file `options.fit_bytes` limits.
        force: replace an earlier output.
        use_cache: use and write the user's cache.
        count_languages: count the tokens of `PruneResult.languages`. Otherwise the list is empty.
        progress: shows the work.

    Returns:
        The result in the process that writes files, None in the others.

    Raises:
        OutputExistsError, UsageError, BudgetError: before any work is done.
        CompactEdgeError: raised by the stages.
    """
    check_output(out, force=force, inputs=existing(model, *texts_of(options)))
    if options.fit_bytes is not None and quant is None:
        raise UsageError("--fit: the type of the file is missing", "give the GGUF type with --quant")
    check_calibration(model, options)
    with open_cache(enabled=use_cache) as cache:
        source = open_source(model, cache, progress, pre=pre)
        check_chat_templates(source.directory)
        licence = licence_of(source)
        for note in licence_notes(licence, source.directory, card=False, folder=out.name):
            progress.note(note)
        context = Context(source, options, cache, progress)
        size_of = None
        if quant is not None and options.fit_bytes is not None:
            size_of = checkpoint_sizes(source, context.once(rank_vocabulary), quant)
        decision = decide(context, size_of=size_of)
        plan = decision.plan
        remember(source, plan, cache)
        if not is_main():
            return None
        needed = sum(ref.n_bytes for ref in source.tensors.values())
        with publish(out, force=force, needed_bytes=needed) as work:
            apply(source, plan, work, updates=decision.updates, progress=progress)
            write_notice(licence, work)
            write_plot(work, plan, source.name)
            write_sums(work)
        languages = language_costs(source.directory, out) if count_languages else []
        return PruneResult(out, source, plan, options, sizes_by_part(out), languages)
