"""ONNX in a build: made by onnxruntime-genai's model builder, opened by onnxruntime and onnxruntime-genai."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from compact.calibration import Calibration
from compact.errors import DamagedFileError, OperatorMissingError
from compact.evaluate import DEFAULT_WINDOW, Evaluation, TextScorer, evaluate, token_bytes
from compact.progress import Progress
from compact.source import CONFIG, TOKENIZER, ModelSource
from compact.store import copy_hashed
from compact.tokenizer import bos_id, encode, load_tokenizer
from compact_edge.formats import ONNX, Format, OnnxChoices, Request
from compact_edge.side import Measured, Side, short_run
from exporters.card import has_chat_template
from exporters.gate import POSITIONS, ParityReport, reference_for
from exporters.genai_engine import GenaiEngine
from exporters.onnx import DATA, MODEL, check_tokenizer_files
from exporters.onnx_artifact import ENGINES, OnnxArtifact, engine_versions, make_onnx_artifact
from exporters.onnx_engine import OnnxEngine
from exporters.onnx_folder import GENAI_CONFIG, read_folder
from exporters.onnx_types import OnnxOptions, check_onnx, grid, onnx_options

if TYPE_CHECKING:
    from compact.cache import Cache
    from targets.profile import Profile

Result = TypeVar("Result")

# The provider of a profile, as onnxruntime names it, and as the model builder does.
PROVIDERS = {
    "CPUExecutionProvider": "cpu",
    "CUDAExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
    "WebGpuExecutionProvider": "webgpu",
}

# The packages that open the folder; for the others the reader's own onnxruntime-genai with that provider.
_WHEELS = {"cpu": "onnxruntime-genai", "cuda": "onnxruntime-genai-cuda"}


@dataclass(frozen=True)
class OnnxFormat(Format):
    """An ONNX folder of one type for one execution provider."""

    made_with: OnnxOptions
    name: ClassVar[str] = ONNX
    engine: ClassVar[str] = "onnxruntime-genai"
    packages: ClassVar[tuple[str, ...]] = ENGINES

    @property
    def quant(self) -> str:
        return self.made_with.quant

    @property
    def channel_grid(self) -> int:
        return grid(self.made_with)

    @property
    def tags(self) -> tuple[str, ...]:
        return (ONNX, "onnxruntime", "onnxruntime-genai")

    def make(self, request: Request, cache: Cache, progress: Progress) -> OnnxArtifact:
        return make_onnx_artifact(
            request.checkpoint, request.checkpoint_id, request.name, self.made_with, cache, progress
        )

    def notes(self, artifact: OnnxArtifact) -> list[str]:
        del artifact
        provider = self.made_with.execution_provider
        if provider == "cpu":
            return []
        return [
            f"laid out for the provider {provider}; what is measured here is the CPU's, so the target's memory budget "
            "is not judged"
        ]

    @property
    def measured_as_on_target(self) -> bool:
        return self.made_with.execution_provider == "cpu"

    def evaluate(
        self, artifact: OnnxArtifact, text: str, *, threads: int, progress: Progress, label: str
    ) -> Evaluation | None:
        return self._if_it_runs(
            lambda: evaluate_onnx(artifact.folder, text, threads=threads, progress=progress, label=label)
        )

    def measure(self, side: Side, text: str, prompt: str | None, threads: int) -> Measured | None:
        return self._if_it_runs(lambda: measure_onnx(side, text, prompt, threads))

    def baseline_kl(self, side: Side, calibration: Calibration) -> float | None:
        from exporters.onnx_parity import onnx_mean_kl

        if self.quant == "fp32":
            return None

        def measure() -> float:
            # One after the other: each holds the whole model.
            reference = reference_for(side.checkpoint, calibration.texts, greedy=False)
            with OnnxEngine(side.artifact.path.parent, n_ctx=POSITIONS) as engine:
                return onnx_mean_kl(reference, engine)

        return self._if_it_runs(measure)

    def _if_it_runs(self, work: Callable[[], Result]) -> Result | None:
        """What `work` gives; None where the CPU provider lacks an operator of a graph that was made for another."""
        try:
            return work()
        except OperatorMissingError:
            if self.made_with.execution_provider == "cpu":
                raise
            return None

    def check(self, side: Side, request: Request, baseline_kl: float | None, progress: Progress) -> ParityReport:
        from exporters.onnx_parity import check_onnx_artifact

        assert isinstance(side.artifact, OnnxArtifact)
        return check_onnx_artifact(
            side.checkpoint,
            side.artifact.folder,
            self.quant,
            request.calibration.texts,
            unpruned=request.source.directory,
            baseline_kl=baseline_kl,
            progress=progress,
        )

    def place(self, folder: Path, side: Side, *, check: bool) -> tuple[str, ...]:
        del check
        assert isinstance(side.artifact, OnnxArtifact)
        return place_onnx(folder, side.artifact)

    def options(self) -> dict[str, Any]:
        chosen = self.made_with
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
        del artifact, names
        return {"data": DATA, "execution_provider": self.made_with.execution_provider}

    def usage(self, names: Sequence[str], checkpoint: Path, title: str) -> tuple[str, list[str]]:
        del names, title
        wheel = _WHEELS.get(self.made_with.execution_provider)
        ask = (
            """prompt = tokenizer.apply_chat_template('[{"role": "user", "content": "Hello!"}]', """
            "add_generation_prompt=True)"
            if has_chat_template(checkpoint)
            else 'prompt = "Once upon a time"'
        )
        # onnxruntime-genai puts no BOS in front of a text; a template writes its own.
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
        del names
        chosen = self.made_with
        how = f", {chosen.algo_config} with blocks of {chosen.block_size}" if chosen.quantized else ""
        return [
            f"A folder for [onnxruntime-genai](https://github.com/microsoft/onnxruntime-genai) (execution provider "
            f"`{chosen.execution_provider}`{how}); `{MODEL}` opens in plain onnxruntime too, beside `{DATA}`."
        ]

    def model_files(self, names: Sequence[str]) -> Sequence[str]:
        return names[:2]

    def opened(self, folder: Path, names: Sequence[str]) -> Path:
        del names
        return folder


def settle_options(profile: Profile, quant: str | None, choices: OnnxChoices) -> OnnxOptions:
    """The options for a target: what the user named, else the profile's.

    Raises:
        UsageError: an unknown name, or a combination that the builder cannot write.
    """
    named = quant if quant is not None else profile.quantization
    provider = choices.execution_provider or PROVIDERS[profile.execution_provider or "CPUExecutionProvider"]
    level, algo = choices.accuracy_level, choices.algo_config
    # The profile's level and embedding are those of its own type.
    if named == profile.quantization:
        if level is None and profile.accuracy_level is not None and choices.execution_provider is None:
            level = profile.accuracy_level.value
        if algo is None and named == "int4":
            algo = "default" if profile.embedding_quant == "int4" else "default_last"
    return onnx_options(
        named,
        execution_provider=provider,
        algo_config=algo,
        block_size=choices.block_size,
        accuracy_level=level,
        max_length=profile.context_length.value,
    )


def onnx_format(
    profile: Profile,
    source: ModelSource,
    *,
    quant: str | None,
    choices: OnnxChoices,
    intermediate_size: int | None = None,
) -> OnnxFormat:
    """The format for a model. What cannot be made of it is refused before any work is done.

    `intermediate_size` is the final one where the user named it.

    Raises:
        ToolUnavailableError: a package is missing, or of another version.
        CompactEdgeError: what `settle_options` and `exporters.onnx_types.check_onnx` raise, and a tokenizer's file
            that is missing.
    """
    options = settle_options(profile, quant, choices)
    engine_versions()
    check_tokenizer_files(source.directory)
    check_onnx(options, source.config, str(source.directory / CONFIG))
    if intermediate_size is not None:
        pruned = {**source.config, "intermediate_size": intermediate_size}
        check_onnx(options, pruned, f"--intermediate-size {intermediate_size}")
    positions = source.config.get("max_position_embeddings")
    if isinstance(positions, int) and options.max_length is not None:
        options = replace(options, max_length=min(options.max_length, positions))
    return OnnxFormat(profile, options)


def place_onnx(folder: Path, artifact: OnnxArtifact) -> tuple[str, ...]:
    """Write an artifact's files into a folder that is about to be published; returns their names, the graph first.

    Raises:
        DamagedFileError: a file changed in the cache.
    """
    for name, digest in artifact.files.items():
        if copy_hashed(artifact.folder / name, folder / name) != digest:
            raise DamagedFileError(
                f"{artifact.folder / name}: damaged in the cache (its sha256 changed)",
                "delete the cache, or build with --no-cache",
            )
    others = sorted(artifact.files.keys() - {MODEL, DATA, GENAI_CONFIG})
    return (MODEL, DATA, GENAI_CONFIG, *others)


@contextmanager
def open_onnx(folder: Path, *, threads: int, window: int | None = None) -> Iterator[TextScorer]:
    """Open an ONNX folder in onnxruntime with a context of one window. Raises what `OnnxEngine` raises."""
    size = min(window or DEFAULT_WINDOW, read_folder(folder).context_length)
    tokenizer = load_tokenizer(folder)
    with OnnxEngine(folder, n_ctx=size, n_threads=threads) as engine:
        yield TextScorer(
            lambda text: encode(tokenizer, [text], add_special_tokens=False)[0], engine.score, bos_id(tokenizer), size
        )


def evaluate_onnx(
    folder: Path, text: str, *, threads: int, progress: Progress, window: int | None = None, label: str = "evaluating"
) -> Evaluation:
    """Bits per byte of an ONNX folder through onnxruntime: its own tokenizer.json, the same windows as elsewhere."""
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


def measure_onnx(side: Side, text: str, prompt: str | None, threads: int) -> Measured:
    """A short run of onnxruntime-genai on the CPU: speed and memory on the text, and the reply to a prompt."""
    assert isinstance(side.artifact, OnnxArtifact)
    run = short_run(side, text)
    with GenaiEngine(side.artifact.folder, n_ctx=run.context, n_threads=threads) as engine:
        speed = run.speed(engine.speed)
        reply = None
        if prompt is not None:
            answer = engine.generate(run.prompt(prompt), run.reply_tokens, stop=engine.eog)
            reply = engine.detokenize([i for i in answer.ids if i not in engine.eog]).strip()
    return Measured(speed, run.characters_per_token, reply)
