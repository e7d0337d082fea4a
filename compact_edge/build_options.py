"""What `build` can be asked for, and what is refused before any work is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from compact.budget_options import check_budget
from compact.errors import UsageError
from compact.prune_options import PruneOptions
from compact.prune_texts import check_calibration
from compact.source import ModelSource
from compact_edge.artifact_files import FileOptions
from compact_edge.formats import FORMATS, GGUF, ONNX, Format, OnnxChoices, Quants, size_not_known
from compact_edge.output import check_output, existing

if TYPE_CHECKING:
    from targets.profile import Profile


@dataclass(frozen=True)
class BuildOptions:
    """What `build` was asked for. Paths are as given; None means the default.

    `targets` name one profile a format; `quants` are types, each for one format where there are several. `plan` is a
    folder with a plan.json that was made before (and its updates.safetensors), which is applied as it is; `name` is
    what the pruned model is called.
    """

    model: str
    targets: tuple[str, ...]
    prune: PruneOptions
    quants: tuple[str, ...] = ()
    onnx: OnnxChoices = field(default_factory=OnnxChoices)
    embedding_quant: str | None = None
    imatrix: Path | None = None
    out: Path | None = None
    force: bool = False
    baseline: bool = True
    with_baseline: bool = False
    check: bool = True
    eval_text: Path | None = None
    prompt: str | None = None
    threads: int | None = None
    use_cache: bool = True
    files: FileOptions = field(default_factory=FileOptions)
    plan: Path | None = None
    name: str | None = None


def by_format(profiles: Sequence[Profile]) -> dict[str, Profile]:
    """The profiles by format, in their order. Raises UsageError where two are of one format."""
    found: dict[str, Profile] = {}
    for profile in profiles:
        form = FORMATS[profile.runtime]
        if form in found:
            raise UsageError(
                f"--target {profile.name}: {found[form].name} is built as {form} already",
                "build them one after another: what was pruned once is kept",
            )
        found[form] = profile
    return found


def check_options(options: BuildOptions, profiles: Mapping[str, Profile], quants: Quants) -> None:
    """What can be refused before the model is opened."""
    check_budget(options.prune)
    if options.prune.fit_bytes is not None and ONNX in profiles:
        raise size_not_known(ONNX)
    if options.with_baseline and not options.baseline:
        raise UsageError("--with-baseline and --no-baseline exclude each other", "give one of them")
    if GGUF in profiles:
        from compact_edge.format_gguf import check_gguf_options

        check_gguf_options(quants.of(GGUF), options.embedding_quant, options.imatrix)
    for name in _gguf_only(options) if GGUF not in profiles else ():
        raise UsageError(f"{name}: is for GGUF, which is not built here", "leave it out, or add --target gguf")
    if ONNX in profiles:
        from compact_edge.format_onnx import settle_options

        settle_options(profiles[ONNX], quants.of(ONNX), options.onnx)
    for name in options.onnx.named() if ONNX not in profiles else ():
        raise UsageError(f"{name}: is for ONNX, which is not built here", "leave it out, or add --target onnx")
    if options.out is not None:
        check_output(options.out, force=options.force, inputs=inputs_of(options))
    check_calibration(options.model, options.prune)


def _gguf_only(options: BuildOptions) -> list[str]:
    """The options of GGUF that were given, as the command spells them."""
    given = {
        "--embedding-quant": options.embedding_quant is not None,
        "--imatrix": options.imatrix is not None,
        "--save-imatrix": options.files.save_imatrix,
        "--modelfile": options.files.modelfile,
        "--split-max-size": options.files.split_max_bytes is not None,
    }
    return [name for name, is_given in given.items() if is_given]


def settle_format(options: BuildOptions, profile: Profile, quants: Quants, source: ModelSource) -> Format:
    """The format of a profile for this model. What it cannot hold is refused now, not after hours of calibration."""
    if FORMATS[profile.runtime] == GGUF:
        from compact_edge.format_gguf import gguf_format

        return gguf_format(
            profile,
            source,
            quant=quants.of(GGUF),
            embedding_quant=options.embedding_quant,
            imatrix=options.imatrix,
            files=options.files,
        )
    from compact_edge.format_onnx import onnx_format

    return onnx_format(
        profile,
        source,
        quant=quants.of(ONNX),
        choices=options.onnx,
        intermediate_size=options.prune.intermediate_size,
    )


def inputs_of(options: BuildOptions) -> list[Path]:
    """The files and directories that the build reads."""
    asked = options.prune
    texts = (*asked.calibration, asked.vocab_corpus, asked.keep_tokens, options.eval_text)
    learned = asked.recover.text if asked.recover is not None else ()
    return existing(options.model, *texts, *learned, options.imatrix)
