"""The ONNX format: written by onnxruntime-genai's model builder, opened by onnxruntime and onnxruntime-genai.

Imports outside the standard library are inside functions, because the command line reads this class for `--help`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from compact.base.errors import OperatorMissingError
from exporters.base import Format
from exporters.format_values import Choices, Flag, Measurements, Recipe, Request, SizeRequest, Target, Variant
from exporters.onnx.choices import FLAGS, PROVIDERS, recipes, resolve_options
from exporters.onnx.types import ALGORITHMS, ENGINES, ONNX_TYPES, OnnxOptions, check_onnx, grid

if TYPE_CHECKING:
    from compact.base.cache import Cache
    from compact.base.progress import Progress
    from compact.calibration.calibration_set import Calibration
    from compact.forward.evaluate import Evaluation, TextScorer
    from compact.sources.model_source import ModelSource
    from compact.vocabulary.token_pieces import TokenPieces
    from exporters.format_values import Artifact
    from exporters.gate import ParityReport
    from exporters.llamacpp.quant_list import QuantTable
    from exporters.onnx.artifact import OnnxArtifact
    from exporters.onnx.size import OnnxSizes
    from exporters.task_runtime import Runtime

Result = TypeVar("Result")

# Packages that open the folder, by provider. For other providers, the user needs an onnxruntime-genai build with it.
_WHEELS = {"cpu": "onnxruntime-genai", "cuda": "onnxruntime-genai-cuda"}
# Row lengths must be multiples of these block sizes.
_TYPES: Mapping[str, int] = {"fp32": 1, "fp16": 1, "int8": 1, "int4": 32}
_RECIPE_KEY = "onnx_"


@dataclass(frozen=True)
class OnnxFormat(Format):
    """An ONNX folder of one type for one execution provider."""

    builder_options: OnnxOptions
    name: ClassVar[str] = "onnx"
    label: ClassVar[str] = "ONNX"
    runtime: ClassVar[str] = "onnxruntime"
    engine: ClassVar[str] = "onnxruntime-genai"
    engine_package: ClassVar[str | None] = "onnxruntime-genai"
    packages: ClassVar[tuple[str, ...]] = ENGINES
    profile: ClassVar[str] = "onnx"
    export_quant: ClassVar[str] = "fp32"
    predicts_size: ClassVar[bool] = True
    file_types: ClassVar[Mapping[str, int]] = _TYPES
    tensor_types: ClassVar[Mapping[str, int]] = _TYPES
    providers: ClassVar[tuple[str, ...]] = tuple(PROVIDERS)
    profile_keys: ClassVar[tuple[str, ...]] = ("execution_provider", "accuracy_level")
    flags: ClassVar[tuple[Flag, ...]] = FLAGS

    @classmethod
    def quants(cls) -> tuple[str, ...]:
        return tuple(ONNX_TYPES)

    @classmethod
    def embedding_types(cls, quantization: str) -> Sequence[str]:
        return ("int8", "int4") if quantization == "int4" else (quantization,)

    @classmethod
    def quant_report(cls) -> dict[str, Any]:
        types = [{"name": name, "bits": row.bits, "for": row.purpose} for name, row in ONNX_TYPES.items()]
        algorithms = [{"name": name, "for": row.purpose} for name, row in ALGORITHMS.items()]
        return {cls.name: {"types": types, "algo_configs": algorithms}}

    @classmethod
    def quant_tables(cls) -> Sequence[QuantTable]:
        from exporters.llamacpp.quant_list import Column, QuantTable

        types = (Column("ONNX type"), Column("bits", right=True), Column("for", wraps=True))
        algorithms = (Column("--algo-config"), Column("", right=True), Column("for", wraps=True))
        return [
            QuantTable(types, [(name, str(row.bits), row.purpose) for name, row in ONNX_TYPES.items()]),
            QuantTable(algorithms, [(name, "", row.purpose) for name, row in ALGORITHMS.items()]),
        ]

    @classmethod
    def check_choices(cls, target: Target, quant: str | None, choices: Choices) -> None:
        resolve_options(target, quant, choices)

    @classmethod
    def resolve(
        cls,
        target: Target,
        source: ModelSource,
        *,
        quant: str | None = None,
        choices: Choices | None = None,
        intermediate_size: int | None = None,
    ) -> OnnxFormat:
        """See `Format.resolve`.

        Raises:
            ToolUnavailableError: a package is missing or has an unsupported version.
            CompactEdgeError: a file of the tokenizer is missing, or an error of `resolve_options` or
                `exporters.onnx.types.check_onnx`.
        """
        from compact.checkpoints.names import CONFIG
        from exporters.onnx.artifact import engine_versions
        from exporters.onnx.write import check_tokenizer_files

        options = resolve_options(target, quant, choices or {})
        engine_versions()
        check_tokenizer_files(source.directory)
        check_onnx(options, source.config, str(source.directory / CONFIG))
        if intermediate_size is not None:
            pruned = {**source.config, "intermediate_size": intermediate_size}
            check_onnx(options, pruned, f"--intermediate-size {intermediate_size}")
        positions = source.config.get("max_position_embeddings")
        if isinstance(positions, int) and options.max_length is not None:
            options = replace(options, max_length=min(options.max_length, positions))
        return cls(target, options)

    @classmethod
    def recipes(cls, target: Target, source: ModelSource, choices: Choices) -> Sequence[Recipe]:
        from compact.checkpoints.names import CONFIG

        return recipes(target, source.config, str(source.directory / CONFIG), choices)

    @property
    def quant(self) -> str:
        return self.builder_options.quant

    @property
    def channel_grid(self) -> int:
        return grid(self.builder_options)

    @property
    def tags(self) -> tuple[str, ...]:
        return (self.name, "onnxruntime", "onnxruntime-genai")

    @property
    def measured_as_on_target(self) -> bool:
        return self.builder_options.execution_provider == "cpu"

    def make(self, request: Request, cache: Cache, progress: Progress) -> OnnxArtifact:
        from exporters.onnx.artifact import make_onnx_artifact

        return make_onnx_artifact(
            request.checkpoint, request.checkpoint_id, request.name, self.builder_options, cache, progress
        )

    def sizes(self, request: SizeRequest) -> OnnxSizes:
        from exporters.onnx.size import onnx_sizes

        return onnx_sizes(request.source, self.builder_options)

    def notes(self, artifact: OnnxArtifact) -> list[str]:
        del artifact
        provider = self.builder_options.execution_provider
        if provider == "cpu":
            return []
        return [
            f"laid out for the provider {provider}; what is measured here is the CPU's, so the target's memory budget "
            "is not judged"
        ]

    @classmethod
    def recognises(cls, model: str) -> Path | None:
        from exporters.onnx.folder import named_folder

        return named_folder(model)

    @classmethod
    def open(cls, path: Path, *, threads: int, window: int | None = None) -> AbstractContextManager[TextScorer]:
        from exporters.onnx.scoring import open_onnx

        return open_onnx(path, threads=threads, window=window)

    @classmethod
    def pieces(cls, path: Path) -> TokenPieces:
        from compact.checkpoints.names import TOKENIZER
        from compact.vocabulary.token_pieces import read_pieces

        return read_pieces(path / TOKENIZER)

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
        from exporters.onnx.scoring import evaluate_onnx

        return evaluate_onnx(path, text, threads=threads, progress=progress, window=window, label=label)

    @classmethod
    def open_for_tasks(cls, path: Path, *, threads: int, batch_size: int) -> Runtime:
        from exporters.onnx.tasks import OnnxRuntime

        del batch_size  # the graph takes one sequence at a time
        return OnnxRuntime(path, threads=threads)

    def evaluate(
        self, artifact: Artifact, text: str, *, threads: int, progress: Progress, label: str
    ) -> Evaluation | None:
        return self._if_it_runs(
            lambda: self.score(artifact.opened, text, threads=threads, progress=progress, label=label)
        )

    def measure(self, variant: Variant, text: str, prompt: str | None, threads: int) -> Measurements | None:
        from exporters.onnx.scoring import measure_onnx

        return self._if_it_runs(lambda: measure_onnx(variant, text, prompt, threads))

    def baseline_kl(self, variant: Variant, calibration: Calibration) -> float | None:
        from exporters.gate import POSITIONS, reference_for
        from exporters.onnx.ort_engine import OnnxEngine
        from exporters.onnx.parity import onnx_mean_kl

        if self.quant == "fp32":
            return None

        def measure() -> float:
            # Run one after the other, because each holds the whole model.
            reference = reference_for(variant.checkpoint, calibration.texts, greedy=False)
            with OnnxEngine(variant.artifact.opened, n_ctx=POSITIONS) as engine:
                return onnx_mean_kl(reference, engine)

        return self._if_it_runs(measure)

    def _if_it_runs(self, work: Callable[[], Result]) -> Result | None:
        """Return the result of `work`; None if the CPU provider lacks an operator of a graph for another provider."""
        try:
            return work()
        except OperatorMissingError:
            if self.builder_options.execution_provider == "cpu":
                raise
            return None

    def check(self, variant: Variant, request: Request, baseline_kl: float | None, progress: Progress) -> ParityReport:
        from exporters.onnx.parity import check_onnx_artifact

        return check_onnx_artifact(
            variant.checkpoint,
            variant.artifact.opened,
            self.quant,
            request.calibration.texts,
            unpruned=request.unpruned,
            baseline_kl=baseline_kl,
            progress=progress,
        )

    def place(self, folder: Path, variant: Variant, *, check: bool) -> tuple[str, ...]:
        from exporters.onnx.artifact import OnnxArtifact, place_onnx

        del check
        assert isinstance(variant.artifact, OnnxArtifact)
        return place_onnx(folder, variant.artifact)

    def options(self) -> dict[str, Any]:
        chosen = self.builder_options
        quantized = {
            "algo_config": chosen.algo_config,
            "block_size": chosen.block_size,
            "accuracy_level": chosen.accuracy_level,
        }
        return {
            "quant": chosen.quant,
            "execution_provider": chosen.execution_provider,
            **(quantized if chosen.quantized else {}),
            "max_length": chosen.max_length,
        }

    def describe(self, artifact: OnnxArtifact, names: Sequence[str]) -> dict[str, Any]:
        from exporters.onnx.write import DATA

        del artifact, names
        return {"data": DATA, "execution_provider": self.builder_options.execution_provider}

    def export_figures(self, artifact: OnnxArtifact) -> dict[str, Any]:
        del artifact
        return {"execution_provider": self.builder_options.execution_provider}

    def usage(self, names: Sequence[str], checkpoint: Path, title: str) -> tuple[str, list[str]]:
        from compact.vocabulary.tokenizer import bos_id, load_tokenizer
        from exporters.card import has_chat_template

        del names, title
        wheel = _WHEELS.get(self.builder_options.execution_provider)
        ask = (
            """prompt = tokenizer.apply_chat_template('[{"role": "user", "content": "Hello!"}]', """
            "add_generation_prompt=True)"
            if has_chat_template(checkpoint)
            else 'prompt = "Once upon a time"'
        )
        # onnxruntime-genai does not add BOS to a text. A chat template writes its own.
        bos = None if has_chat_template(checkpoint) else bos_id(load_tokenizer(checkpoint))
        ids = "list(tokenizer.encode(prompt))" if bos is None else f"[{bos}, *tokenizer.encode(prompt)]"
        return "python", [
            f"import onnxruntime_genai as og{f'  # pip install {wheel}' if wheel else ''}",
            "",
            'model = og.Model(".")  # this folder',
            "tokenizer = og.Tokenizer(model)",
            ask,
            f"ids = {ids}",
            "params = og.GeneratorParams(model)",
            "params.set_search_options(max_length=len(ids) + 100)",
            "generator = og.Generator(model, params)",
            "generator.append_tokens(ids)",
            "while not generator.is_done():",
            "    generator.generate_next_token()",
            "print(tokenizer.decode(generator.get_sequence(0)[len(ids) :]))",
        ]

    def card_notes(self, names: Sequence[str]) -> list[str]:
        from exporters.onnx.write import DATA, MODEL

        del names
        chosen = self.builder_options
        how = f", {chosen.algo_config} with blocks of {chosen.block_size}" if chosen.quantized else ""
        return [
            f"A folder for [onnxruntime-genai](https://github.com/microsoft/onnxruntime-genai) (execution provider "
            f"`{chosen.execution_provider}`{how}); `{MODEL}` opens in plain onnxruntime too, beside `{DATA}`."
        ]

    def model_files(self, names: Sequence[str]) -> Sequence[str]:
        return names[:2]

    @classmethod
    def release_recipe(cls, target: Target, quant: str | None) -> dict[str, Any]:
        options = resolve_options(target, quant, {})
        return {f"{_RECIPE_KEY}{key}": value for key, value in asdict(options).items()}

    @classmethod
    def recipe_label(cls, recipe: Mapping[str, Any]) -> str:
        return f"{recipe['onnx_execution_provider']}-{recipe['onnx_quant']}"

    @classmethod
    def from_release(cls, recipe: Mapping[str, Any], target: Target, source: ModelSource) -> OnnxFormat:
        from compact.checkpoints.names import CONFIG

        values = {key.removeprefix(_RECIPE_KEY): recipe[key] for key in recipe if key.startswith(_RECIPE_KEY)}
        options = OnnxOptions(**values)
        check_onnx(options, source.config, str(source.directory / CONFIG))
        return cls(target, options)

    @classmethod
    def from_manifest(
        cls, recipe: Mapping[str, Any], target: Target, source: ModelSource, imatrix: Path | None = None
    ) -> OnnxFormat:
        del source, imatrix
        return cls(target, OnnxOptions(**recipe))

    def manifest_recipe(self, *, has_imatrix: bool) -> dict[str, Any]:
        del has_imatrix
        return asdict(self.builder_options)

    @property
    def short_name(self) -> str:
        return f"{self.builder_options.execution_provider}-{self.quant}"

    @property
    def long_name(self) -> str:
        options = self.builder_options
        parts = [self.short_name]
        if options.quantized:
            algorithm = str(options.algo_config).replace("_", "-")
            parts += [algorithm, f"block-{options.block_size}", f"acc-level-{options.accuracy_level}"]
        return "-".join([*parts, f"ctx-{options.max_length}"])

    def made_with(self) -> dict[str, Any] | None:
        from exporters.onnx.artifact import engine_versions

        versions = engine_versions()
        return {
            "engine": f"onnxruntime-genai {versions['onnxruntime-genai']}",
            "build": ", ".join(f"{name} {number}" for name, number in sorted(versions.items())),
        }
