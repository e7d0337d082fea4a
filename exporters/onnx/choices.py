"""What a user can say of ONNX on the command line, and what a target says where the user does not."""

from __future__ import annotations

from exporters.format_values import Choices, Flag, Target
from exporters.onnx.types import OnnxOptions, onnx_options

# The provider of a profile, as onnxruntime names it, and as the model builder does.
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
        "ONNX int4 and int8: how weights are rounded, as the model builder names it.",
        section=_SECTION,
    ),
    Flag("--block-size", "ONNX int4 and int8: weights of a block (default: 32).", int, _SECTION),
    Flag("--accuracy-level", "ONNX int4 and int8: 1 computes in float32, 4 in int8.", int, _SECTION),
    Flag("--execution-provider", "ONNX: cpu, cuda, dml or webgpu (default: the target's).", section=_SECTION),
)


def resolve_options(target: Target, quant: str | None, choices: Choices) -> OnnxOptions:
    """The options for a target: what the user named, else the target's.

    Raises:
        UsageError: an unknown name, or a combination that the builder cannot write.
    """
    named = quant if quant is not None else target.quantization
    provider = choices.get("execution_provider") or PROVIDERS[target.execution_provider or "CPUExecutionProvider"]
    level, algo = choices.get("accuracy_level"), choices.get("algo_config")
    # The target's level and embedding are those of its own type.
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
