"""Command-line options for ONNX, and how a target fills in those that the user leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compact.base.errors import UsageError
from exporters.format_values import Choices, Flag, Recipe, Target, is_given
from exporters.onnx.types import OnnxOptions, check_onnx, onnx_options

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


# Quantisers of int4 that a search tries, largest files first. On SmolLM2-135M, `rtn*` and plain `k_quant` lose more
# than `default*` of about the same size, and the two `*_mixed` are close together (docs/onnx.md). So `default_mixed` is
# tried only for models with an odd number of blocks in a row, which `k_quant*` refuses.
_TRIED = ("k_quant_mixed", "k_quant_last", "default_last", "default")
_TRIED_ODD = ("default_mixed", "default_last", "default")


def recipes(target: Target, config: Mapping[str, Any], where: str, choices: Choices) -> list[Recipe]:
    """Return the types that a search tries, largest files first. All of them keep what the user chose.

    A quantiser, block size or accuracy level of the user leaves out fp32 and fp16, which have no blocks. A recipe's
    choices include the user's choices for ONNX.

    Args:
        target: the device profile.
        config: the parsed config.json.
        where: path of config.json, for messages.
        choices: values of the format's flags.

    Raises:
        CompactEdgeError: no type can hold the model (`exporters.onnx.types.check_onnx`).
    """
    given = {flag.key: choices[flag.key] for flag in FLAGS if is_given(choices.get(flag.key))}
    algorithm = given.get("algo_config")

    def fits(recipe: Recipe) -> bool:
        try:
            check_onnx(resolve_options(target, recipe.quant, recipe.choices), config, where)
        except UsageError:
            return False
        return True

    def int4(names: Sequence[str]) -> list[Recipe]:
        return [Recipe("int4", {**given, "algo_config": name}, f"int4, {name}") for name in names]

    whole = [Recipe(name, given, name) for name in ("fp32", "fp16")]
    int8 = Recipe("int8", given, "int8" if algorithm is None else f"int8, {algorithm}")
    tried = int4(_TRIED if algorithm is None else (algorithm,))
    if algorithm is None and not all(map(fits, tried)):
        tried = int4(_TRIED_ODD)
    return [recipe for recipe in (*whole, int8, *tried) if fits(recipe)]
