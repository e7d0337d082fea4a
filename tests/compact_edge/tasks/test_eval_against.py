"""eval --against: where a pruned `tiny` loses, which tokens to keep, and what goes wrong, on one line."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compact.forward.excess import ScoredTokens
from compact.sources.model_source import TINY
from compact.vocabulary.token_pieces import TokenPieces
from compact_edge.cli import main as cli
from compact_edge.tasks.against import Comparison, CostlyWord, Reading, save_tokens, visible
from compact_edge.terminal.console import Console
from tests.checkpoints import TEXTS, train_tokenizer
from tests.small_builds import ROOT, Workshop

# ASCII, so that a character is a byte.
TEXT = (
    "The committee recommended that every municipal library should reconsider its acquisitions. Afterwards the "
    "archaeologist photographed the inscription, whispered something incomprehensible and laughed. Unfortunately the "
    "recommendation was misunderstood: nobody photographed anything, and the committee apologised for the confusion.\n"
    "def reconsider(library):\n    return sorted(library, key=lambda book: book.acquisition)\n"
)
VOCAB_SIZE = "4096"


@dataclass(frozen=True)
class Place:
    root: Path
    text: Path
    cut: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("against")
    (root / "text.txt").write_text(TEXT, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPACT_EDGE_CACHE", str(root / "cache"))
        assert cli.run(["prune", "tiny", "--vocab-size", VOCAB_SIZE, "--out", str(root / "cut")]) == 0
    return Place(root, root / "text.txt", root / "cut")


@pytest.fixture(autouse=True)
def cached(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(place.root / "cache"))


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.run(["eval", *arguments, "--json"]) == 0, capsys.readouterr().err
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def reading(directory: Path, text: str) -> tuple[list[int], list[float], list[str]]:
    """(end in bytes, bits, token) of every token by plain Transformers: offsets, and one forward pass. No BOS."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    ids = torch.tensor([encoded["input_ids"]])
    with torch.inference_mode():
        rows = model(ids).logits[0].double().log_softmax(-1)
    bits = [0.0] + [-float(rows[i - 1, ids[0, i]]) / math.log(2) for i in range(1, ids.shape[1])]
    return [stop for _, stop in encoded["offset_mapping"]], bits, tokenizer.convert_ids_to_tokens(ids[0].tolist())


def test_classes_and_words_are_those_of_transformers(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, str(place.cut), "--against", "tiny", "--text", str(place.text), "--words", "1000")
    own, own_bits, own_tokens = reading(place.cut, TEXT)
    other, other_bits, other_tokens = reading(ROOT / "compact" / "models" / TINY, TEXT)
    common = sorted(set(own) & set(other))
    # The first token is context only, so what both share begins after the first common boundary.
    n_bytes = len(TEXT) - common[0]
    excess = {"split": 0.0, "after_split": 0.0, "other": 0.0}
    words: dict[str, list[float]] = {}
    last_split = -100
    for number, end in enumerate(common):
        begin = common[number - 1] if number else 0
        mine = [i for i, stop in enumerate(own) if begin < stop <= end]
        theirs = [i for i, stop in enumerate(other) if begin < stop <= end]
        cost = sum(own_bits[i] for i in mine) - sum(other_bits[i] for i in theirs)
        split = len(mine) > len(theirs)
        kind = "split" if split else "after_split" if mine[0] - last_split <= 8 else "other"
        last_split = mine[-1] if split else last_split
        if number:
            excess[kind] += cost
            if split:
                assert len(theirs) == 1  # in this text, every split word is one token of the other model
                words.setdefault(other_tokens[theirs[0]], []).append(cost)
    assert found["n_bytes"] == n_bytes
    assert found["classes"]["split"]["segments"] >= 5
    for kind, bits in excess.items():
        assert found["classes"][kind]["excess_bits_per_byte"] == pytest.approx(bits / n_bytes, abs=1e-5), kind
    parts = sum(part["excess_bits_per_byte"] for part in found["classes"].values())
    assert found["excess_bits_per_byte"] == pytest.approx(parts, abs=1e-12)
    whole = found["bits_per_byte"] - found["against_bits_per_byte"]
    assert found["excess_bits_per_byte"] == pytest.approx(whole, abs=1e-12)
    costly = {word: costs for word, costs in words.items() if sum(costs) > 0}
    assert found["n_split_words"] == len(words)
    assert {word["token"] for word in found["words"]} == costly.keys()
    for word in found["words"]:
        costs = costly[word["token"]]
        assert (word["count"], word["excess_bits"]) == (len(costs), pytest.approx(sum(costs), abs=1e-2))
        assert word["missing"] is True and word["token"] not in own_tokens
        assert "".join(word["pieces"]) == word["text"] and len(word["pieces"]) > 1
    order = [word["excess_bits"] for word in found["words"]]
    assert order == sorted(order, reverse=True)


def test_a_gguf_loses_where_the_checkpoint_does(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    export = ["export", str(place.cut), "--quant", "F32", "--no-check", "--out", str(place.root / "gguf")]
    assert cli.run(export) == 0
    (gguf,) = (place.root / "gguf").glob("*.gguf")
    arguments = ["--text", str(place.text), "--threads", "1", "--words", "5"]
    checkpoint = run_json(capsys, str(place.cut), "--against", "tiny", *arguments)
    file = run_json(capsys, str(gguf), "--against", "tiny", *arguments)
    assert file["n_bytes"] == checkpoint["n_bytes"]
    for kind, part in checkpoint["classes"].items():
        other = file["classes"][kind]
        assert other.pop("excess_bits_per_byte") == pytest.approx(part.pop("excess_bits_per_byte"), abs=1e-3)
        assert other == part
    assert [word["token"] for word in file["words"]] == [word["token"] for word in checkpoint["words"]]
    # As the other model, it has the same spelling of the tokens; the pruned model splits nothing of itself.
    turned = run_json(capsys, str(place.cut), "--against", str(gguf), *arguments)
    assert turned["classes"]["split"]["segments"] == 0 and turned["words"] == []
    assert turned["excess_bits_per_byte"] == pytest.approx(0, abs=1e-3)


def test_what_is_saved_is_kept_by_the_next_prune(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    saved = place.root / "keep.txt"
    line = ["eval", str(place.cut), "--against", "tiny", "--text", str(place.text), "--save-tokens", str(saved)]
    assert cli.run(line) == 0
    printed = capsys.readouterr()
    tokens = saved.read_text(encoding="utf-8").splitlines()
    assert f"wrote {len(tokens)} tokens to {saved}" in printed.err
    assert tokens and not any(" " in token for token in tokens) and any(token.startswith("Ġ") for token in tokens)
    again = place.root / "again"
    prune = ["prune", "tiny", "--vocab-size", VOCAB_SIZE, "--keep-tokens", str(saved), "--out", str(again)]
    assert cli.run(prune) == 0
    before = run_json(capsys, *line[1:-2])
    after = run_json(capsys, str(again), *line[2:-2])
    assert not {word["token"] for word in after["words"]} & set(tokens)
    assert after["classes"]["split"]["segments"] < before["classes"]["split"]["segments"]
    assert after["bits_per_byte"] < before["bits_per_byte"]
    # A file is never overwritten.
    refused(capsys, line, 2, f"{saved}: already exists")


def test_the_tables(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place.root)
    assert cli.run(["eval", "cut", "--against", "tiny", "--text", "text.txt", "--words", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert [line.split("  ")[0] for line in lines] == [
        *("MODEL", "cut", "tiny", "excess", ""),
        *("WHERE THE EXCESS IS", "words that are split", "within 8 tokens after a split", "everything else", "all", ""),
        *(lines[11], "WORD", *(line.split("  ")[0] for line in lines[13:16]), lines[16]),
    ]
    assert lines[11].startswith("the 3 most expensive of ")
    for line in lines[13:16]:
        word, written = line.split("  ")[0], line.split("  ")[-1].strip()
        assert word == written.replace(" + ", "") and " + " in written
    assert lines[16].startswith("to keep these words: --save-tokens FILE")


def test_a_model_against_itself(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["eval", str(place.cut), "--against", str(place.cut), "--text", str(place.text)]
    assert cli.run([*arguments, "--save-tokens", str(place.root / "none.txt")]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == "no words are split"
    assert "+0.0000" in printed.out and "nan" not in printed.out
    assert "no word to keep" in printed.err and not (place.root / "none.txt").exists()


def test_with_bos_bits_per_byte_are_those_of_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = Workshop(tmp_path / "large", bos=True)
    small = Workshop(tmp_path / "small", tokenizer=train_tokenizer(vocab_size=300, bos=True))
    text = tmp_path / "text.txt"
    text.write_text("\n".join(TEXTS), encoding="utf-8")
    arguments = ["--text", str(text), "--window", "48"]
    found = run_json(capsys, str(small.model), "--against", str(large.model), *arguments)
    for model, prefix in ((small.model, ""), (large.model, "against_")):
        alone = run_json(capsys, str(model), *arguments)
        assert found[f"{prefix}bits_per_byte"] == pytest.approx(alone["bits_per_byte"], rel=1e-9)
        assert (found["n_bytes"], found[f"{prefix}n_tokens"]) == (alone["n_bytes"], alone["n_tokens"])
        assert found[f"{prefix}window"] == 48
    assert found["classes"]["split"]["segments"] > 10


def test_tokens_that_no_line_can_hold_are_left_out(tmp_path: Path) -> None:
    nothing = ScoredTokens((), np.zeros(0, np.int64), np.zeros(0), 0)
    side = Reading("m", nothing, TokenPieces({}, frozenset(), True, "m"), 8)
    spellings = ("▁stare", "\n\n", "a\x85b", "▁", "\u2028", "e")
    words = [CostlyWord(token, token.encode(), (), 1, 1.0, missing=token != "e") for token in spellings]
    stderr = io.StringIO()
    out = tmp_path / "keep.txt"
    save_tokens(out, Comparison(side, side, 1, (), len(words), tuple(words)), Console(stderr, interactive=False))
    assert out.read_text(encoding="utf-8").splitlines() == ["▁stare", "▁"]
    assert stderr.getvalue().startswith(f"{out}: left out 3 tokens that contain a line break")


def test_words_are_shown_without_control_characters() -> None:
    assert visible(b" a\n\x1b[2J") == "␣a\\n\\x1b[2J"
    assert visible("é".encode()[:1]) == "\\xc3"
    assert visible("Größe".encode()) == "Größe"


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, *parts: str) -> None:
    capsys.readouterr()
    assert cli.run(arguments) == code
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    assert sum(line.startswith("error: ") for line in printed.err.splitlines()) == 1
    for part in parts:
        assert part in printed.err, printed.err


def test_what_is_refused(place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, text = ["eval", str(place.cut)], ["--text", str(place.text)]
    refused(capsys, [*model, "--against", "tiny", "--tasks", "piqa"], 2, "--against is for --text")
    refused(capsys, [*model, "--against", "tiny"], 2, "give either --text or --tasks")
    refused(capsys, [*model, *text, "--words", "5"], 2, "--words is for --against")
    refused(capsys, [*model, *text, "--save-tokens", "x.txt"], 2, "--save-tokens is for --against")
    against = [*model, *text, "--against"]
    refused(capsys, [*against, "tiny", "--save-tokens", "x.jsonl"], 2, "plain text", "keep.txt")
    refused(
        capsys, [*against, "tiny", "--save-tokens", str(tmp_path / "no" / "x.txt")], 74, "its folder does not exist"
    )
    refused(capsys, [*against, "tinny"], 65, "tinny: no such directory", "did you mean 'tiny'")
    refused(capsys, [*against, str(tmp_path / "no.gguf")], 65, "no.gguf")
    empty = tmp_path / "empty.txt"
    empty.write_text("", encoding="utf-8")
    refused(capsys, [*model, "--against", "tiny", "--text", str(empty)], 65, "contains no text")
    refused(capsys, [*against, "tiny", "--max-bytes", "1"], 65, "fewer than two tokens")
    # Transformers reads a text for this family in NFC.
    decomposed = tmp_path / "decomposed.txt"
    decomposed.write_text("A cafe\u0301 in the town.", encoding="utf-8")
    refused(capsys, [*model, "--against", "tiny", "--text", str(decomposed)], 65, "from byte 5", "Unicode NFC")
