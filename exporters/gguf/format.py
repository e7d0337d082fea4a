"""The GGUF format: written by `exporters.gguf_writer.write` and llama.cpp's quantizer, opened by llama.cpp.

Imports outside the standard library are inside functions, because the command line reads this class for `--help`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from compact.base.errors import DataError, UsageError
from exporters.base import Format
from exporters.format_values import (
    ORIGINAL,
    Choices,
    Flag,
    Measurements,
    Recipe,
    Request,
    SizeRequest,
    Target,
    Variant,
    is_given,
)
from exporters.gguf.flags import FLAGS, MIX
from exporters.gguf.type_choice import chosen_types, writes_directly
from exporters.llamacpp.quant_types import QUANTS, ggml_type, grid, quant_named

if TYPE_CHECKING:
    from compact.base.cache import Cache
    from compact.base.progress import Progress
    from compact.calibration.calibration_set import Calibration
    from compact.forward.evaluate import Evaluation, TextScorer
    from compact.sources.model_source import ModelSource
    from compact.vocabulary.token_pieces import TokenPieces
    from exporters.gate import ParityReport
    from exporters.gguf.artifact import GgufArtifact
    from exporters.gguf.artifact_sizes import GgufArtifactSizes
    from exporters.gguf.placing import FileOptions
    from exporters.llamacpp.quant_list import QuantTable
    from exporters.task_runtime import Runtime

_ENDING = ".gguf"
# Row lengths must be multiples of these block sizes. File types such as Q4_K_M mix tensor types of one block size.
# Types that llama.cpp refuses to write without an importance matrix (IQ1, IQ2, IQ3_XXS) are not a sensible default.
_BLOCK_1 = ("F32", "F16", "BF16")
_BLOCK_32 = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL")
_BLOCK_256_FILE = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "IQ4_XS")
_BLOCK_256_TENSOR = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
_SMALL_BLOCKS = {**dict.fromkeys(_BLOCK_1, 1), **dict.fromkeys(_BLOCK_32, 32)}


@dataclass(frozen=True)
class GgufFormat(Format):
    """A GGUF file of one type.

    Attributes:
        type_name: type, with its llama.cpp name.
        embedding: type of `token_embd`; None for llama.cpp's choice.
        asked_embedding: type of `token_embd` that the user requested.
        imatrix: file with an importance matrix of the pruned model.
        files: additional files of the folder.
        window: note about the model's sliding window; None if the GGUF supports it.
        mix: tensor name -> type, for a mix that a search made. Empty: the mix that llama.cpp calls `type_name`.
    """

    type_name: str
    embedding: str | None
    asked_embedding: str | None
    imatrix: Path | None
    files: FileOptions
    window: str | None
    mix: Mapping[str, str] = field(default_factory=dict)
    name: ClassVar[str] = "gguf"
    label: ClassVar[str] = "GGUF"
    runtime: ClassVar[str] = "llama.cpp"
    engine: ClassVar[str] = "llama.cpp"
    engine_package: ClassVar[str | None] = "llama-cpp-python"
    packages: ClassVar[tuple[str, ...]] = ("gguf", "llama-cpp-python", "torch", "transformers")
    profile: ClassVar[str] = "gguf"
    # A good source for other quantizers.
    export_quant: ClassVar[str] = "F16"
    suffix: ClassVar[str] = _ENDING
    predicts_size: ClassVar[bool] = True
    file_types: ClassVar[Mapping[str, int]] = {**_SMALL_BLOCKS, **dict.fromkeys(_BLOCK_256_FILE, 256)}
    tensor_types: ClassVar[Mapping[str, int]] = {**_SMALL_BLOCKS, **dict.fromkeys(_BLOCK_256_TENSOR, 256)}
    flags: ClassVar[tuple[Flag, ...]] = FLAGS
    # Name that llama.cpp uses instead of an artifact's `tokenizer.ggml.pre`; None for the file's own.
    pre_tokenizer: ClassVar[str | None] = None

    @classmethod
    def quants(cls) -> tuple[str, ...]:
        return tuple(QUANTS)

    @classmethod
    def quant_report(cls) -> dict[str, Any]:
        from exporters.llamacpp.quant_list import REFERENCE, quant_rows, refused_rows

        return {"reference": REFERENCE, "types": quant_rows(), "refused": refused_rows()}

    @classmethod
    def quant_tables(cls) -> Sequence[QuantTable]:
        from exporters.llamacpp.quant_list import gguf_table

        return [gguf_table()]

    @classmethod
    def check_choices(cls, target: Target, quant: str | None, choices: Choices) -> None:
        del target
        imatrix: Path | None = choices.get("imatrix")
        if choices.get("embedding_quant") is not None:
            ggml_type(choices["embedding_quant"])
        if quant is not None:
            chosen = quant_named(quant)
            if imatrix is not None and writes_directly(chosen, choices.get("embedding_quant"), choices.get(MIX) or {}):
                raise UsageError(
                    f"--imatrix: {chosen.name} files do not use one", "leave it out, or choose a 4-bit type"
                )
        if imatrix is not None and not imatrix.is_file():
            raise DataError(f"--imatrix {imatrix}: no such file", "correct the path, or leave it out to measure one")

    @classmethod
    def check_export(cls, target: Target, quant: str, choices: Choices) -> None:
        del target
        has_imatrix, measures = is_given(choices.get("imatrix")), bool(choices.get("calibration"))
        if has_imatrix and measures:
            raise UsageError("--imatrix and --calibration exclude each other", "give one of them")
        quant_named(quant)
        if choices.get("save_imatrix") and not has_imatrix and not measures:
            raise UsageError("--save-imatrix: needs a text to measure the matrix on", "give --calibration TEXT")

    @classmethod
    def resolve(
        cls,
        target: Target,
        source: ModelSource,
        *,
        quant: str | None = None,
        choices: Choices | None = None,
        intermediate_size: int | None = None,
    ) -> GgufFormat:
        """See `Format.resolve`. The checks are here, before hours of calibration."""
        from exporters.gguf.placing import FileOptions
        from exporters.gguf_writer.write import check_exportable, window_note

        del intermediate_size
        given: Choices = choices or {}
        embedding_quant = given.get("embedding_quant")
        check_exportable(source.directory)
        type_name, embedding = chosen_types(target, source.config, quant, embedding_quant)
        files = FileOptions(
            save_imatrix=bool(given.get("save_imatrix")),
            modelfile=bool(given.get("modelfile")),
            split_max_bytes=given.get("split_max_size"),
        )
        window = window_note(source.family, source.config)
        mix: Mapping[str, str] = given.get(MIX) or {}
        return cls(target, type_name, embedding, embedding_quant, given.get("imatrix"), files, window, mix)

    @classmethod
    def measured_recipes(
        cls,
        target: Target,
        request: Request,
        choices: Choices,
        cache: Cache,
        progress: Progress,
        *,
        also: Sequence[Recipe] = (),
    ) -> Sequence[Recipe]:
        from exporters.gguf.search_types import with_errors

        recipes = [*also, *cls.recipes(target, request.source, choices)]
        return with_errors(recipes, request, choices, cache, progress)

    @property
    def own_recipe(self) -> Recipe:
        return Recipe(self.type_name, {"embedding_quant": self.embedding, MIX: self.mix}, self.long_name)

    def for_trial(
        self, kept_channels: Sequence[Sequence[int]], request: Request, work: Path, cache: Cache, progress: Progress
    ) -> GgufFormat:
        """See `Format.for_trial`. The matrix is the unpruned model's, without the dropped channels."""
        from exporters.gguf.search_types import write_trial_matrix

        if not self.uses_imatrix:
            return self
        path = write_trial_matrix(work / "imatrix.gguf", kept_channels, request, cache, progress)
        return replace(self, imatrix=path)

    @property
    def quant(self) -> str:
        return self.type_name

    @property
    def channel_grid(self) -> int:
        # Rows of down_proj have `intermediate_size` weights.
        blocks = (ggml_type(kind).block for name, kind in self.mix.items() if "ffn_down" in name)
        return math.lcm(grid(self.type_name), *blocks)

    def make(self, request: Request, cache: Cache, progress: Progress) -> GgufArtifact:
        from exporters.gguf.artifact import Export, make_artifact, metadata_of
        from exporters.gguf.placing import check_files

        calibration = request.calibration
        export = Export(
            checkpoint=request.checkpoint,
            checkpoint_id=request.checkpoint_id,
            quant=self.type_name,
            name=request.name,
            pre=request.pre,
            embedding_quant=self.embedding,
            tensor_types=self.mix,
            # The given matrix is of the pruned model. The unpruned model needs its own.
            imatrix_file=None if request.label == ORIGINAL else self.imatrix,
            texts=calibration.texts if request.measures else (),
            texts_id=calibration.id,
            texts_name=calibration.label,
            with_imatrix=self.files.save_imatrix,
            metadata=metadata_of(request.source, request.name, request.description, request.plan_id),
        )
        artifact = make_artifact(export, cache, progress)
        if request.published:
            check_files(artifact, self.files)
        return artifact

    @classmethod
    def recipes(cls, target: Target, source: ModelSource, choices: Choices) -> Sequence[Recipe]:
        from exporters.gguf.recipes import recipes_of

        del target
        return recipes_of(source, choices.get("embedding_quant"))

    def sizes(self, request: SizeRequest) -> GgufArtifactSizes:
        from exporters.gguf.artifact_sizes import artifact_sizes

        isa = None if self.target.isa is None else self.target.isa.features
        return artifact_sizes(request, self.type_name, self.embedding, isa, tensor_types=self.mix)

    def notes(self, artifact: GgufArtifact) -> list[str]:
        from exporters.gguf.artifact import artifact_notes

        return [*([] if self.window is None else [self.window]), *artifact_notes(artifact)]

    @classmethod
    def recognises(cls, model: str) -> Path | None:
        from exporters.gguf.named import named_gguf

        return named_gguf(model)

    @classmethod
    def with_pre(cls, path: Path, pre: str) -> type[GgufFormat]:
        from exporters.gguf.named import check_pre

        check_pre(path, pre)
        return type(cls.__name__, (cls,), {"pre_tokenizer": pre})

    @classmethod
    def opening_notes(cls, path: Path) -> list[str]:
        from exporters.gguf.named import pre_notes

        return pre_notes(path) if cls.pre_tokenizer is None else []

    @classmethod
    @contextmanager
    def open(cls, path: Path, *, threads: int, window: int | None = None) -> Iterator[TextScorer]:
        from exporters.gguf.scoring import open_gguf

        with open_gguf(path, threads=threads, window=window, pre=cls.pre_tokenizer) as (scorer, _):
            yield scorer

    @classmethod
    def pieces(cls, path: Path) -> TokenPieces:
        from compact.checkpoints.gguf_file import read_gguf
        from compact.sources.from_gguf_tokenizer import read_gguf_pieces

        return read_gguf_pieces(read_gguf(path).values, str(path))

    @classmethod
    def score(
        cls,
        path: Path,
        text: str,
        *,
        threads: int,
        progress: Progress,
        window: int | None = None,
        label: str = "evaluating",
    ) -> Evaluation:
        from exporters.gguf.scoring import evaluate_gguf

        pre = cls.pre_tokenizer
        return evaluate_gguf(path, text, threads=threads, progress=progress, window=window, label=label, pre=pre)

    @classmethod
    def open_for_tasks(cls, path: Path, *, threads: int, batch_size: int) -> Runtime:
        from exporters.gguf.tasks import GgufRuntime

        return GgufRuntime(path, threads=threads, batch_size=batch_size, pre=cls.pre_tokenizer)

    def measure(self, variant: Variant, text: str, prompt: str | None, threads: int) -> Measurements:
        """See `Format.measure`. Uses llama.cpp."""
        from exporters.gguf.scoring import measure_gguf

        return measure_gguf(variant, text, prompt, threads)

    def baseline_kl(self, variant: Variant, calibration: Calibration) -> float | None:
        from exporters.gate import POSITIONS, mean_kl, reference_for
        from exporters.llamacpp.engine import LlamaEngine

        if variant.artifact.quant == "F32":
            return None
        reference = reference_for(variant.checkpoint, calibration.texts, greedy=False)
        with LlamaEngine(variant.artifact.path, n_ctx=POSITIONS) as engine:
            return mean_kl(reference, engine)

    def check(self, variant: Variant, request: Request, baseline_kl: float | None, progress: Progress) -> ParityReport:
        from exporters.gguf.parity import check_artifact

        return check_artifact(
            variant.checkpoint,
            variant.artifact.path,
            variant.artifact.quant,
            request.calibration.texts,
            unpruned=request.unpruned,
            baseline_kl=baseline_kl,
            pre=request.pre,
            progress=progress,
        )

    def place(self, folder: Path, variant: Variant, *, check: bool) -> tuple[str, ...]:
        from exporters.gguf.artifact import GgufArtifact
        from exporters.gguf.placing import place_artifact

        assert isinstance(variant.artifact, GgufArtifact)
        return place_artifact(folder, variant.artifact, variant.checkpoint, self.files, check=check)

    def options(self) -> dict[str, Any]:
        return {
            "quant": self.type_name,
            "embedding_quant": self.asked_embedding,
            **({MIX: dict(self.mix)} if self.mix else {}),
            "save_imatrix": self.files.save_imatrix,
            "modelfile": self.files.modelfile,
            "split_max_bytes": self.files.split_max_bytes,
        }

    def describe(self, artifact: GgufArtifact, names: Sequence[str]) -> dict[str, Any]:
        return {"parts": list(names) if len(names) > 1 else None, "imatrix_id": artifact.imatrix_id}

    def export_figures(self, artifact: GgufArtifact) -> dict[str, Any]:
        return {"sha256": artifact.sha256, "imatrix_id": artifact.imatrix_id}

    def usage(self, names: Sequence[str], checkpoint: Path, title: str) -> tuple[str, list[str]]:
        from exporters.gguf.usage import card_lines

        return "console", card_lines(names, checkpoint, title, modelfile=self.files.modelfile)

    def commands(self, folder: Path, names: Sequence[str], checkpoint: Path) -> list[str]:
        from exporters.gguf.usage import chat_mode

        return [f"llama-cli -m {shlex.quote(str(folder / names[0]))} {chat_mode(checkpoint)}"]

    def card_notes(self, names: Sequence[str]) -> list[str]:
        if len(names) < 2:
            return []
        listed = ", ".join(f"`{name}`" for name in names)
        return [f"In {len(names)} parts; llama.cpp opens the first and finds the others beside it: {listed}."]

    @classmethod
    def release_recipe(cls, target: Target, quant: str | None) -> dict[str, Any]:
        if quant is not None:
            return {}
        keys = ("quantization", "quantization_block32", "embedding_quant")
        return {key: getattr(target, key) for key in keys}

    @classmethod
    def from_manifest(
        cls, recipe: Mapping[str, Any], target: Target, source: ModelSource, imatrix: Path | None = None
    ) -> GgufFormat:
        choices = {
            "embedding_quant": recipe["embedding_quant"],
            "imatrix": imatrix if recipe["imatrix"] else None,
            MIX: recipe.get(MIX),
        }
        return cls.resolve(target, source, quant=recipe["quant"], choices=choices)

    def manifest_recipe(self, *, has_imatrix: bool) -> dict[str, Any]:
        mix = {MIX: dict(self.mix)} if self.mix else {}
        return {"quant": self.type_name, "embedding_quant": self.embedding, "imatrix": has_imatrix, **mix}

    @property
    def long_name(self) -> str:
        return self.type_name if self.embedding is None else f"{self.type_name}-embd-{self.embedding}"

    @property
    def uses_imatrix(self) -> bool:
        return not writes_directly(quant_named(self.type_name), self.embedding, self.mix)

    def made_with(self) -> dict[str, Any] | None:
        if not self.uses_imatrix:  # llama.cpp writes every file that uses one, and no other
            return None
        from exporters.llamacpp.engine_build import engine_build

        return dict(engine_build().as_dict())
