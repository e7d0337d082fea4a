"""A third export format as another package would bring it: the checkpoint's own files, and a line that says so.

`tests/exporters/test_third_format.py` names this class in an entry point; nothing else knows it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from compact.base.cache import Cache
from compact.base.files import copy_hashed, sha256_file, sha256_json, write_json
from compact.base.progress import Progress
from compact.checkpoints.names import TOKENIZER
from compact.checkpoints.shards import read_index
from compact.forward.evaluate import Evaluation, TextScorer, evaluate_checkpoint, open_checkpoint
from compact.sources.model_source import ModelSource
from compact.vocabulary.token_pieces import TokenPieces, read_pieces
from exporters.base import Format
from exporters.format_values import Choices, Flag, Request, Target, Variant
from exporters.gate import Check, ParityReport

MARK = "copy.json"
_CARRIED = {".json", ".safetensors", ".jinja"}


@dataclass(frozen=True)
class CopyArtifact:
    """A folder in the cache; `files` are sha256 by name."""

    opened: Path
    files: Mapping[str, str]
    name: str
    n_params: int
    quant: str = "stored"
    embedding_type: str = "stored"

    @property
    def path(self) -> Path:
        return self.opened / MARK

    @property
    def title(self) -> str:
        return f"{self.name}-copy"

    @property
    def sha256(self) -> str:
        return sha256_json(dict(self.files))

    @property
    def size_bytes(self) -> int:
        return sum((self.opened / name).stat().st_size for name in self.files)

    @property
    def bits_per_weight(self) -> float:
        return self.size_bytes * 8 / self.n_params


@dataclass(frozen=True)
class CopyFormat(Format):
    """The checkpoint's files beside a one-line manifest, which may hold a note."""

    note: str | None
    name: ClassVar[str] = "copy"
    label: ClassVar[str] = "COPY"
    runtime: ClassVar[str] = "transformers"
    engine: ClassVar[str] = "transformers"
    packages: ClassVar[tuple[str, ...]] = ("safetensors", "torch", "transformers")
    profile: ClassVar[str] = str(Path(__file__).with_suffix(".toml"))
    export_quant: ClassVar[str] = "stored"
    flags: ClassVar[tuple[Flag, ...]] = (Flag("--copy-note", "COPY: a line for its manifest.", section="COPY"),)
    file_types: ClassVar[Mapping[str, int]] = {"stored": 1}
    tensor_types: ClassVar[Mapping[str, int]] = {"stored": 1}

    @classmethod
    def quants(cls) -> tuple[str, ...]:
        return ("stored",)

    @classmethod
    def resolve(
        cls,
        target: Target,
        source: ModelSource,
        *,
        quant: str | None = None,
        choices: Choices | None = None,
        intermediate_size: int | None = None,
    ) -> CopyFormat:
        return cls(target, (choices or {}).get("copy_note"))

    @property
    def quant(self) -> str:
        return "stored"

    def make(self, request: Request, cache: Cache, progress: Progress) -> CopyArtifact:
        def write(work: Path) -> None:
            for path in sorted(request.checkpoint.iterdir()):
                if path.suffix in _CARRIED and path.name != "plan.json":
                    shutil.copyfile(path, work / path.name)
            write_json(work / MARK, {"format": "copy/1", "note": self.note})

        key = sha256_json({"checkpoint": request.checkpoint_id, "note": self.note})
        folder = cache.get_or_make("copy", key, write)
        files = {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.name != "entry.json"}
        n_params = sum(ref.n_elements for ref in read_index(request.checkpoint).values())
        return CopyArtifact(folder, files, request.name, n_params)

    @classmethod
    def recognises(cls, model: str) -> Path | None:
        return Path(model) if (Path(model) / MARK).is_file() else None

    @classmethod
    def open(cls, path: Path, *, threads: int, window: int | None = None) -> AbstractContextManager[TextScorer]:
        return nullcontext(open_checkpoint(path, window=window, device="cpu", dtype="float32"))

    @classmethod
    def pieces(cls, path: Path) -> TokenPieces:
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
        return evaluate_checkpoint(
            path, text, window=window, device="cpu", dtype="float32", progress=progress, label=label
        )

    def check(self, variant: Variant, request: Request, baseline_kl: float | None, progress: Progress) -> ParityReport:
        ours, theirs = read_index(variant.artifact.opened), read_index(variant.checkpoint)
        return ParityReport((Check("tensors", ours.keys() == theirs.keys(), f"{len(ours)} tensors"),))

    def place(self, folder: Path, variant: Variant, *, check: bool) -> tuple[str, ...]:
        artifact = variant.artifact
        assert isinstance(artifact, CopyArtifact)
        for name, digest in artifact.files.items():
            assert copy_hashed(artifact.opened / name, folder / name) == digest
        return (MARK, *(name for name in artifact.files if name != MARK))

    def usage(self, names: Sequence[str], checkpoint: Path, title: str) -> tuple[str, list[str]]:
        return "python", ["from transformers import AutoModelForCausalLM", 'AutoModelForCausalLM.from_pretrained(".")']

    def describe(self, artifact: Any, names: Sequence[str]) -> dict[str, Any]:
        return {"note": self.note}
