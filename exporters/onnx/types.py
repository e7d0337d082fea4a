"""Types, quantisers and execution providers of ONNX models, and which of them can be combined.

The names are those of onnxruntime-genai's model builder. Options that it cannot write, or writes incorrectly, are
refused before the build.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from compact.architectures.family import Family
from compact.architectures.table import family_of
from compact.base.errors import DamagedFileError, QuantizedCheckpointError, UnsupportedArchitectureError, UsageError

# `exporters.onnx.builder` corrects the model builder of this version of onnxruntime-genai.
BUILDER_VERSION = "0.18"
# The packages that decide a folder's bytes.
ENGINES = ("onnx", "onnx-ir", "onnxruntime", "onnxruntime-genai", "torch", "transformers")
EXECUTION_PROVIDERS = ("cpu", "cuda", "dml", "webgpu")
_NO_FP32 = ("cuda", "dml")  # onnxruntime refuses the graph, because no node produces its outputs `present.*`
BLOCK_SIZES = (16, 32, 64, 128, 256)
ACCURACY_LEVELS = (0, 1, 2, 3, 4)
DEFAULT_BLOCK_SIZE = 32
MAX_LENGTH_LIMIT = 1 << 31


@dataclass(frozen=True)
class OnnxType:
    """One row of the list of types.

    Attributes:
        bits: bits per weight of a matrix, without scales.
        purpose: one line for users.
    """

    bits: int
    purpose: str


ONNX_TYPES: Mapping[str, OnnxType] = MappingProxyType(
    {
        "fp32": OnnxType(32, "unchanged weights; the reference, four times the size of int8"),
        "fp16": OnnxType(16, "half the size of fp32; the type in which GPUs compute"),
        "int8": OnnxType(8, "close to the original at a quarter of the size of fp32"),
        "int4": OnnxType(4, "the smallest; the loss depends on the quantiser (--algo-config)"),
    }
)


@dataclass(frozen=True)
class Algorithm:
    """A quantiser and the matrices that it keeps at 8 bits.

    Attributes:
        method: the builder's `algo_config`.
        placement: the builder's `matmul_mixed_precision`.
        purpose: one line for users.
    """

    method: str
    placement: Mapping[str, str]
    purpose: str


_LAST = MappingProxyType({"last_matmul": "int8"})
_MIXED = MappingProxyType({"last_matmul": "int8", "mixed_layers": "int8"})
_NONE: Mapping[str, str] = MappingProxyType({})
ALGORITHMS: Mapping[str, Algorithm] = MappingProxyType(
    {
        "default": Algorithm("default", _NONE, "onnxruntime's own rounding, the smallest"),
        "default_last": Algorithm("default", _LAST, "the same, with the output matrix at 8 bits"),
        "default_mixed": Algorithm("default", _MIXED, "the same, with the most sensitive layers at 8 bits too"),
        "rtn": Algorithm("rtn", _NONE, "round to nearest on a grid that leaves one value unused"),
        "rtn_last": Algorithm("rtn", _LAST, "the same, with the output matrix at 8 bits"),
        "k_quant": Algorithm("k_quant", _NONE, "scales and zero points searched block by block"),
        "k_quant_last": Algorithm("k_quant", _LAST, "the same, with the output matrix at 8 bits"),
        "k_quant_mixed": Algorithm("k_quant", _MIXED, "the same, with the most sensitive layers at 8 bits too"),
    }
)
# For int4 on SmolLM2-135M, `default_last` loses least for its size.
_DEFAULT_ALGORITHM = {"int4": "default_last", "int8": "default"}
# Defaults of the builder (onnxruntime-genai 0.18, models/quantization/quant_config.py). 0: provider's default.
_ACCURACY_LEVEL: Mapping[str, int] = MappingProxyType({"cpu": 4, "webgpu": 4})
_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
_HEAD_STEP = 16  # required by GroupQueryAttention with fused rotary positions; dml uses a separate rotary operator
_ACTIVATIONS = ("silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu", "relu2")
# The angles of all other kinds depend on the text length, but the graph has one fixed table of angles.
_ROPE_KINDS = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class OnnxOptions:
    """Options of an ONNX export. `onnx_options` fills in the defaults.

    Attributes:
        quant: type of the weights, a name of `ONNX_TYPES`.
        execution_provider: provider that the graph is built for, one of `EXECUTION_PROVIDERS`.
        algo_config: quantiser, a name of `ALGORITHMS`; None for fp32 and fp16.
        block_size: number of weights that share a scale, one of `BLOCK_SIZES`.
        accuracy_level: compute precision of MatMulNBits, 0 to 4; None for fp32 and fp16.
        max_length: tokens for which onnxruntime-genai allocates its key-value cache; None: the model's context.
    """

    quant: str
    execution_provider: str = "cpu"
    algo_config: str | None = None
    block_size: int = DEFAULT_BLOCK_SIZE
    accuracy_level: int | None = None
    max_length: int | None = None

    @property
    def quantized(self) -> bool:
        """Whether matrices are stored as integers."""
        return self.algo_config is not None

    @property
    def algorithm(self) -> Algorithm:
        """The row of `ALGORITHMS`. Only for quantised types."""
        assert self.algo_config is not None
        return ALGORITHMS[self.algo_config]


def onnx_options(
    quant: str,
    *,
    execution_provider: str = "cpu",
    algo_config: str | None = None,
    block_size: int | None = None,
    accuracy_level: int | None = None,
    max_length: int | None = None,
) -> OnnxOptions:
    """Fill in defaults, and check all that can be checked without a model.

    Raises:
        UsageError: a name is unknown, a value is out of range, or two values exclude each other.
    """
    _known(quant, ONNX_TYPES, "ONNX type")
    _known(execution_provider, EXECUTION_PROVIDERS, "execution provider")
    if max_length is not None and not 1 <= max_length < MAX_LENGTH_LIMIT:
        raise UsageError(f"max_length = {max_length} is out of range", "give 1 or more, or omit it")
    if quant == "fp32" and execution_provider in _NO_FP32:
        message = f"fp32 is not possible for {execution_provider}: the builder's graph would have no key-value cache"
        raise UsageError(message, "use fp16, or the execution provider cpu")
    if quant not in _DEFAULT_ALGORITHM:
        for name, value in (
            ("algo_config", algo_config),
            ("block_size", block_size),
            ("accuracy_level", accuracy_level),
        ):
            if value is not None:
                raise UsageError(f"{name} = {value} has no effect for {quant}", "omit it, or use int4 or int8")
        return OnnxOptions(quant, execution_provider, max_length=max_length)
    algo = algo_config if algo_config is not None else _DEFAULT_ALGORITHM[quant]
    _known(algo, ALGORITHMS, "quantiser")
    if quant == "int8" and ALGORITHMS[algo].placement:
        raise UsageError(
            f"algo_config {algo} keeps some matrices at 8 bits, but int8 stores all of them at 8 bits",
            f"use {ALGORITHMS[algo].method}",
        )
    size = DEFAULT_BLOCK_SIZE if block_size is None else block_size
    if size not in BLOCK_SIZES:
        raise UsageError(f"block_size = {size} is not supported", f"use one of: {', '.join(map(str, BLOCK_SIZES))}")
    if accuracy_level is not None and accuracy_level not in ACCURACY_LEVELS:
        raise UsageError(f"accuracy_level = {accuracy_level} is not supported", "use 0 to 4")
    level = _ACCURACY_LEVEL.get(execution_provider, 0) if accuracy_level is None else accuracy_level
    return OnnxOptions(quant, execution_provider, algo, size, level, max_length)


def other_version(found: str) -> str:
    """Return the message if onnxruntime-genai does not have `BUILDER_VERSION`."""
    return f"onnxruntime-genai {found} is installed, but compact-edge needs {BUILDER_VERSION}"


def _known(name: str, known: Iterable[str], what: str) -> None:
    from difflib import get_close_matches

    names = list(known)
    if name not in names:
        close = get_close_matches(name.lower(), names, n=2)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"one of: {', '.join(names)}"
        raise UsageError(f"{what} {name[:40]!r} is not known", hint)


def grid(options: OnnxOptions) -> int:
    """Return the step for `intermediate_size`. At multiples of it, rows of down_proj consist of whole blocks.

    `k_quant` needs an even number of blocks (see `check_onnx`).
    """
    if not options.quantized:
        return 1
    return options.block_size * 2 if _needs_even_blocks(options) else options.block_size


def check_onnx(options: OnnxOptions, config: Mapping[str, Any], where: str) -> Family:
    """Check before the build that the model can be written. Return its row of the family table.

    Args:
        options: export options.
        config: the parsed config.json.
        where: path of config.json, for messages.

    Raises:
        UsageError: the options do not fit this model.
        UnsupportedArchitectureError, MixtureOfExpertsError: an ONNX graph cannot express the model.
        QuantizedCheckpointError: the checkpoint is quantised.
        DamagedFileError: a setting is invalid.
    """
    family = family_of(config, where)
    if family.onnx_refusal is not None:
        message = f"{where}: {family.architecture} cannot be written as ONNX: {family.onnx_refusal}"
        raise UnsupportedArchitectureError(message, "export this model to GGUF")
    if config.get("quantization_config") is not None:
        raise QuantizedCheckpointError(f"{where}: the checkpoint is quantised", "export the unquantised checkpoint")
    hidden, inner, heads, _layers, _vocab = (_size(config, key, where) for key in _SIZES)
    for key in ("num_key_value_heads", "head_dim", "max_position_embeddings"):
        if config.get(key) is not None:
            _size(config, key, where)
    head_dim = family.head_dim_of(config)
    if heads % family.kv_heads(config):
        raise DamagedFileError(
            f"{where}: {heads} heads are not a multiple of {family.kv_heads(config)} key-value heads",
            "correct config.json, or download it again",
        )
    if head_dim % _HEAD_STEP and options.execution_provider != "dml":
        message = f"{where}: head_dim = {head_dim} is not a multiple of {_HEAD_STEP}, as GroupQueryAttention requires"
        raise UnsupportedArchitectureError(message, "export this model to GGUF")
    _check_settings(family, config, where)
    _check_rope(config, where)
    if _needs_even_blocks(options):
        rows = {hidden, inner, heads * head_dim}
        odd = [row for row in sorted(rows) if _odd_blocks(row, options.block_size)]
        if odd:
            fitting = [str(size) for size in BLOCK_SIZES if not any(_odd_blocks(row, size) for row in rows)]
            sizes = f"block_size {' or '.join(fitting)}, or " if fitting else ""
            raise UsageError(
                f"{where}: {options.algo_config} needs an even number of blocks, but rows of {odd[0]} weights have an "
                f"odd number of blocks of {options.block_size}",
                f"use {sizes}algo_config {_DEFAULT_ALGORITHM['int4']}",
            )
    return family


def _needs_even_blocks(options: OnnxOptions) -> bool:
    """Return whether rows need an even number of blocks.

    onnxruntime packs two 4-bit zero points of `k_quant` per byte.
    """
    return options.quant == "int4" and options.algorithm.method == "k_quant"


def _odd_blocks(row: int, block: int) -> bool:
    return -(-row // block) % 2 == 1


def _size(config: Mapping[str, Any], key: str, where: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < MAX_LENGTH_LIMIT:
        raise DamagedFileError(
            f"{where}: {key} = {str(value)[:40]!r} is not a positive integer",
            "correct config.json, or download it again",
        )
    return value


def _check_settings(family: Family, config: Mapping[str, Any], where: str) -> None:
    """Refuse settings that the builder silently ignores or has no operator for."""
    activation = family.activation(config)
    if activation not in _ACTIVATIONS:
        message = f"{where}: activation {activation[:40]!r} is not supported in ONNX"
        raise UnsupportedArchitectureError(message, f"supported: {', '.join(_ACTIVATIONS)}")
    if config.get("use_bidirectional_attention"):
        raise UnsupportedArchitectureError(
            f"{where}: use_bidirectional_attention is not supported in ONNX", "export this model to GGUF"
        )


def _check_rope(config: Mapping[str, Any], where: str) -> None:
    """Refuse rotary settings that a fixed table of angles for whole heads cannot express."""
    parts: list[Mapping[str, Any]] = [{"partial_rotary_factor": config.get("partial_rotary_factor")}]
    for key in ("rope_scaling", "rope_parameters"):
        settings = config.get(key) or {}
        if not isinstance(settings, Mapping):
            raise DamagedFileError(f"{where}: {key} is not an object", "correct config.json, or download it again")
        parts += [settings, *(part for part in settings.values() if isinstance(part, Mapping))]
    for part in parts:
        kind = part.get("rope_type", part.get("type")) or "default"
        if kind not in _ROPE_KINDS:
            raise UnsupportedArchitectureError(
                f"{where}: rope scaling {str(kind)[:40]!r} is not supported in ONNX",
                f"supported: {', '.join(_ROPE_KINDS)}",
            )
        if part.get("partial_rotary_factor") not in (None, 1, 1.0):
            raise UnsupportedArchitectureError(
                f"{where}: partial_rotary_factor = {part['partial_rotary_factor']!r} is not supported in ONNX",
                "export this model to GGUF",
            )
