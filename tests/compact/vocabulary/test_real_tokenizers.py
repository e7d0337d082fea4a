"""Real tokenizers, pruned: any text gives the same ids in the tokenizers library and in llama.cpp.

The data folder's tokenizers, and llama.cpp's own vocabularies where COMPACT_EDGE_LLAMACPP names the folder `models` of
its sources. `benchmarks/formats/tokenizer_parity.py` does the same on more texts and sizes, for every tokenizer.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compact.checkpoints.gguf_file import read_gguf
from compact.sources.from_gguf_tokenizer import read_tokenizer
from exporters.llamacpp.engine import LlamaEngine
from exporters.tokenizer_probe_texts import probe_texts
from tests.checkpoints import TEXTS
from tests.vocabularies import SEPARATOR, Source, closed, dense, differing, lost_round_trips, write_tokenizer

LLAMACPP = "COMPACT_EDGE_LLAMACPP"
SHARED = ("qwen2", "llama3", "gemma4")
# Byte-level and SentencePiece-style BPE among llama.cpp's vocabularies that name their pre-tokenizer.
VOCABULARIES = (
    "baichuan", "command-r", "gemma-4", "gpt-2", "llama-bpe", "llama-spm", "mpt", "phi-3", "qwen2", "qwen35", "refact",
    "starcoder",
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A tokenizer and what is left of it, each open in llama.cpp."""

    before: Source
    after: Source
    before_engine: LlamaEngine
    after_engine: LlamaEngine

    def only_pruned(self, texts: list[str]) -> list[str]:
        """Texts on which the two libraries differ after pruning and did not before."""
        found: list[str] = []
        for special in (True, False):
            if new := differing(self.after, self.after_engine, texts, special):
                old = differing(self.before, self.before_engine, new, special)
                found += [text for text in new if text not in old]
        return found


@pytest.fixture(scope="module", params=SHARED)
def pair(request: pytest.FixtureRequest, data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """A data-folder tokenizer, cut to a size and with named tokens that a fixed seed draws."""
    folder = data_dir / "tokenizers" / request.param
    scratch = tmp_path_factory.mktemp(request.param)
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    config = (folder / "tokenizer_config.json").read_bytes()
    before = Source(write_tokenizer(scratch / "before", document, {"tokenizer_config.json": config}))
    draw = random.Random(request.param)
    named = draw.sample(sorted(before.vocabulary.tokens), 200)
    after = before.prune(scratch / "after", draw.randrange(len(before.always) + 400, before.vocabulary.n_rows), named)
    with before.engine(scratch) as before_engine, after.engine(scratch) as after_engine:
        yield Pair(before, after, before_engine, after_engine)


@pytest.mark.slow
def test_pruning_keeps_what_the_tokenizer_could(pair: Pair) -> None:
    texts = [*TEXTS, *probe_texts(sorted(pair.after.vocabulary.specials)[:20])]
    assert dense(pair.after)
    assert closed(pair.before, pair.after) == set()
    assert lost_round_trips(pair.before, pair.after, texts) == []
    assert pair.only_pruned(texts) == []


# Large pieces, because every example asks four tokenizers.
_PIECES = st.lists(
    st.text(max_size=60)
    | st.sampled_from(
        [*TEXTS, "  ", "\n\n", "\t", "\u2581", "\u0301", "1234567", "'s", "<|", "|>", "\U0001f9d1\u200d"]
    ),
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(texts=st.lists(_PIECES.map("".join), min_size=4, max_size=12))
def test_any_text_has_the_same_ids_in_llama_cpp(pair: Pair, texts: list[str]) -> None:
    assert pair.only_pruned(texts) == []


@pytest.fixture(scope="session")
def llamacpp_models() -> Path:
    named = os.environ.get(LLAMACPP)
    if not named or not Path(named).is_dir():
        pytest.skip(f"{LLAMACPP} names no folder: this test needs `models` of llama.cpp's sources")
    return Path(named)


@pytest.mark.slow
@pytest.mark.parametrize("name", VOCABULARIES)
def test_llama_cpps_own_test_texts(llamacpp_models: Path, tmp_path: Path, name: str) -> None:
    path = llamacpp_models / f"ggml-vocab-{name}.gguf"
    read = read_tokenizer(read_gguf(path).values, path.name)
    files: dict[str, str | bytes] = {"tokenizer_config.json": json.dumps(read.names)}
    if read.model is not None:
        files["tokenizer.model"] = read.model
    source = Source(write_tokenizer(tmp_path / name, read.json, files))
    texts = [*TEXTS, *probe_texts(())]
    if Path(f"{path}.inp").is_file():
        own = Path(f"{path}.inp").read_bytes().decode("utf-8").split(SEPARATOR)
        lines = Path(f"{path}.out").read_text(encoding="utf-8").split("\n")
        assert source.ids(own, parse_special=False) == [[int(i) for i in line.split()] for line in lines[: len(own)]]
        texts += own
    pruned = source.prune(tmp_path / f"{name}-pruned", source.vocabulary.n_rows // 2)
    with LlamaEngine(path, vocab_only=True) as original, pruned.engine(tmp_path) as engine:
        for special in (True, False):
            assert differing(source, original, texts, special) == []
            assert differing(pruned, engine, texts, special) == []
    assert dense(pruned)
    assert closed(source, pruned) == set()
    assert lost_round_trips(source, pruned, texts) == []
