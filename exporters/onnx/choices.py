"""Command-line options for ONNX, and how a target fills in those that the user leaves out."""

from __future__ import annotations

from exporters.format_values import Choices, Flag, Target
from exporters.onnx.types import OnnxOptions, onnx_options

# Execution providers: onnxruntime name, as in a profile -> name in the model builder.
PROVIDERS = {
    "CPUExecutionProvider": "cpu",
    "CUDAExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
    "WebGpuExecutionProvider": "webgpu",
}
_SECTION = "ONNX"

FLAGS = (
    Flag(
        "--algo-config",
        "ONNX int4 and int8: rounding algorithm, as the model builder names it.",
        section=_SECTION,
    ),
    Flag("--block-size", "ONNX int4 and int8: weights per block (default: 32).", int, _SECTION),
    Flag("--accuracy-level", "ONNX int4 and int8: compute type, from 1 (float32) to 4 (int8).", int, _SECTION),
    Flag("--execution-provider", "ONNX: cpu, cuda, dml or webgpu (default: the target's).", section=_SECTION),
)


def resolve_options(target: Target, quant: str | None, choices: Choices) -> OnnxOptions:
    """Return the options for a target. The choices of the user take precedence over those of the target.

    Raises:
        UsageError: a name is unknown, or the builder cannot write the combination.
    """
    named = quant if quant is not None else target.quantization
    provider = choices.get("execution_provider") or PROVIDERS[target.execution_provider or "CPUExecutionProvider"]
    level, algo = choices.get("accuracy_level"), choices.get("algo_config")
    # The accuracy level and embedding type of a target belong to its own type only.
    if named == target.quantization:
        if level is None and target.accuracy_level is not None and choices.get("execution_provider") is None:
            level = target.accuracy_level.value
        if algo is None and named == "int4":
            algo = "default" if target.embedding_quant == "int4" else "default_last"
    return onnx_options(
        named,
        execution_provider=provider,
        algo_config=algo,
        block_size=choices.get("block_size"),
        accuracy_level=level,
        max_length=target.context_length.value,
    )
