"""Shared parts of the parity gates: checks and their report, the reference, and the limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compact.base.errors import GateError
from compact.checkpoints.names import CONFIG
from compact.checkpoints.shards import read_index
from compact.forward.load import load_model
from compact.vocabulary.tokenizer import encode, load_tokenizer
from exporters.llamacpp.engine import Generation, kl_divergence
from exporters.llamacpp.gelu_table import table_in

if TYPE_CHECKING:
    from exporters.llamacpp.engine import LlamaEngine

POSITIONS = 512
GREEDY_TOKENS = 32
MAX_LOGIT_DIFFERENCE = 1e-3
TIE_GAP = 1e-3
# Load a whole model only if it needs at most this share of the free memory.
MEMORY_SHARE = 0.6

TOO_LARGE = "the model did not fit in memory"

# The limit for the mean KL of a pruned artifact is KL_FACTOR times that of the unpruned model at the same type, but at
# least KL_FLOOR nats. From `benchmarks/formats/gguf_types.py` (ratios 0.1, 0.2, 0.35; docs/size.md has the table).
KL_FACTOR = 2.5
KL_FLOOR = 0.002


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        name: `tokenizer`, `ends`, `tensors`, `graph`, `logits`, `kl`, `greedy`, `chat`, `generation`.
        passed: None if the result is reported without a verdict.
        detail: one line for the user.
        figures: the same result as JSON values.
    """

    name: str
    passed: bool | None
    detail: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ParityReport:
    """All checks of an artifact.

    Attributes:
        checks: the checks that ran.
        partial: whether this machine could run only some of the checks.
        why_partial: the reason if `partial`.
    """

    checks: tuple[Check, ...]
    partial: bool = False
    why_partial: str = TOO_LARGE

    @property
    def passed(self) -> bool:
        return all(check.passed is not False for check in self.checks)

    def require(self, *, tokenizer_hint: str | None = None) -> None:
        """Raise GateError with the first failed check.

        `tokenizer_hint` is the next step if that is the check `tokenizer`, for a cause that the user can mend.
        """
        report = "report this with the model's name, or examine it with --no-check"
        for check in self.checks:
            if check.passed is False:
                mend = f"{tokenizer_hint}; otherwise " if tokenizer_hint and check.name == "tokenizer" else ""
                raise GateError(
                    f"parity gate failed, {check.name}: {check.detail}",
                    f"the artifact was not published; {mend}{report}",
                )

    def as_dict(self) -> dict[str, Any]:
        checks = [
            {"name": c.name, "passed": c.passed, "detail": c.detail, "figures": dict(c.figures)} for c in self.checks
        ]
        why = {"why_partial": self.why_partial} if self.partial else {}
        return {"passed": self.passed, "partial": self.partial, **why, "checks": checks}

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> ParityReport:
        checks = tuple(Check(**check) for check in value["checks"])
        return ParityReport(checks, bool(value["partial"]), str(value.get("why_partial", TOO_LARGE)))


def rounded(value: float) -> float:
    """Round to four significant digits, so that equal builds have byte-identical manifests."""
    return float(f"{value:.4g}")


def hf_ids(tokenizer: Any, texts: Sequence[str], *, parse_special: bool) -> list[list[int]]:
    """Return the ids of each text from the HF tokenizer, without BOS and EOS.

    With `parse_special`, the text of a special token becomes that token.
    """
    tokenizer.backend_tokenizer.encode_special_tokens = not parse_special
    return [list(e.ids) for e in tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def generate_ends(checkpoint: Path) -> list[int]:
    """Return the ids at which `generate` of Transformers stops, as `from_pretrained` reads them."""
    from transformers import GenerationConfig

    try:
        config = GenerationConfig.from_pretrained(str(checkpoint), local_files_only=True)
    except OSError:  # there is no generation_config.json
        config = GenerationConfig.from_pretrained(
            str(checkpoint), config_file_name=CONFIG, _from_model_config=True, local_files_only=True
        )
    ends = config.eos_token_id
    return sorted({token for token in ([ends] if isinstance(ends, int) else ends or ()) if token >= 0})


def fits_in_memory(checkpoint: Path, artifact_bytes: int, share: float) -> bool:
    """Return whether the model in float32 and the artifact together need at most `share` of the free memory."""
    import psutil

    parameters = sum(ref.n_elements for ref in read_index(checkpoint).values())
    needed = 4 * parameters + artifact_bytes
    return bool(needed <= share * psutil.virtual_memory().available)


def tokenizer_check(
    texts: Sequence[str],
    failed: Sequence[int],
    excused: Sequence[int],
    how: str,
    runtime: str,
    shown_by: str = "for the unpruned model too",
) -> Check:
    """Return the check `tokenizer` for a runtime.

    Args:
        texts: all compared texts.
        failed: indices of the texts that failed.
        excused: indices of the texts whose difference is the runtime's own.
        how: how the texts were tokenized, for `detail`.
        runtime: name of the runtime.
        shown_by: evidence that a difference is the runtime's own, for `detail`.
    """
    figures = {"texts": len(texts), "different": len(failed), "runtime_own": len(excused)}
    detail = f"{len(texts)} texts, {how}: ids equal"
    if excused:
        samples = ", ".join(repr(texts[n][:40]) for n in excused[:3])
        detail += f"; {len(excused)} differ {shown_by}, {runtime}'s own difference ({samples})"
    if failed:
        detail = f"ids differ on {len(failed)} of {len(texts)} texts, first {texts[failed[0]][:60]!r}"
    return Check("tokenizer", not failed, detail, figures)


@dataclass(frozen=True)
class Reference:
    """Results of Transformers for one text, the reference for an artifact's logits.

    Attributes:
        ids: [T] token ids, T <= 512.
        logits: float32 [T, vocab_size].
        greedy: ids of the greedy continuation of the first half; empty if not requested.
        by_table: float32 [T, vocab_size] logits with llama.cpp's float16 GELU; None for other activations, or if not
            requested.
    """

    ids: list[int]
    logits: np.ndarray[Any, np.dtype[np.float32]]
    greedy: list[int]
    by_table: np.ndarray[Any, np.dtype[np.float32]] | None = None

    @property
    def prompt(self) -> list[int]:
        """The first half of the ids, which `greedy` continues."""
        return self.ids[: max(1, len(self.ids) // 2)]

    @property
    def rounding(self) -> float:
        """Maximum effect of llama.cpp's float16 GELU on a logit; 0 for other activations."""
        return 0.0 if self.by_table is None else float(np.abs(self.by_table - self.logits).max())


def reference_for(checkpoint: Path, texts: Sequence[str], *, greedy: bool, positions: int = POSITIONS) -> Reference:
    """Run the checkpoint in float32 in Transformers on the first `positions` tokens of `texts`.

    Args:
        checkpoint: a checkpoint directory.
        texts: texts, joined until there are enough tokens.
        greedy: also compute the greedy continuation, and for a model with GELU the logits with llama.cpp's GELU.
        positions: maximum number of tokens.
    """
    import torch

    stream: list[int] = []
    tokenizer = load_tokenizer(checkpoint)
    for text in texts:
        if len(stream) >= positions:
            break
        stream += encode(tokenizer, [text], add_special_tokens=True)[0]
    ids = stream[:positions]
    model = load_model(checkpoint)
    with torch.inference_mode():
        batch = torch.tensor([ids], dtype=torch.int64)  # [1, T]
        logits = model(input_ids=batch, use_cache=False).logits[0].float().numpy()  # [T, vocab_size]
        by_table = None
        with table_in(model) as has_gelu:
            if has_gelu and greedy:
                by_table = model(input_ids=batch, use_cache=False).logits[0].float().numpy()
        continued: list[int] = []
        if greedy:
            prompt = batch[:, : max(1, len(ids) // 2)]
            output = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=GREEDY_TOKENS,
                do_sample=False,
                eos_token_id=-1,
                pad_token_id=0,
            )
            continued = output[0, prompt.shape[1] :].tolist()
    return Reference(ids, logits, continued, by_table)


def check_float32(reference: Reference, engine: LlamaEngine) -> list[Check]:
    """Check that logits are within 1e-3 of Transformers, and that the greedy text is the same up to ties.

    A model with GELU is compared with Transformers using llama.cpp's float16 GELU. Values close to the boundary between
    two float16 numbers can still be rounded differently, so the limit is at least the effect of that rounding.
    """
    rounding = reference.rounding
    expected = reference.logits if reference.by_table is None else reference.by_table
    difference = float(np.abs(engine.logits(reference.ids) - expected).max())
    limit = max(MAX_LOGIT_DIFFERENCE, rounding)
    allowed = f"limit {limit:.1g}"
    figures = {"max_abs_difference": rounded(difference), "positions": len(reference.ids)}
    if reference.by_table is not None:
        allowed += f", with llama.cpp's float16 GELU, which alone makes {rounding:.1e}"
        figures["runtime_rounding"] = rounded(rounding)
    logits = Check(
        "logits",
        difference <= limit,
        f"max abs difference {difference:.1e} over {len(reference.ids)} positions ({allowed})",
        figures,
    )
    answer = engine.generate(reference.prompt, len(reference.greedy))
    return [logits, check_greedy(answer, reference.greedy, TIE_GAP + rounding)]


def check_greedy(answer: Generation, expected: Sequence[int], tie: float = TIE_GAP) -> Check:
    """Check that a greedy text is as expected, or that its two best logits differ by less than `tie` at the first
    difference.
    """
    first = next((n for n, (a, b) in enumerate(zip(answer.ids, expected, strict=False)) if a != b), None)
    if first is None:
        same = len(answer.ids) == len(expected)
        detail = f"{len(answer.ids)} tokens equal"
    else:
        gap = answer.gaps[first]
        same = gap < tie
        detail = f"tokens differ at {first}, where the two best logits are {gap:.1e} apart"
    return Check("greedy", same, detail, {"tokens": len(expected), "first_difference": first})


def mean_kl(reference: Reference, engine: LlamaEngine) -> float:
    """Return the mean KL(float32 || artifact) in nats over the positions of the reference."""
    return float(kl_divergence(reference.logits, engine.logits(reference.ids)).mean())


def check_kl(kl: float, quant: str, baseline_kl: float | None) -> Check:
    """Check the mean KL against that of the unpruned model at the same type. Without a baseline, only report it."""
    figures = {"mean_kl": rounded(kl)}
    if not np.isfinite(kl):
        return Check("kl", False, f"mean KL to float32 is {kl} at {quant}", {"mean_kl": None})
    if baseline_kl is None:
        return Check("kl", None, f"mean KL to float32 {kl:.4g} nats at {quant}, no baseline to judge it by", figures)
    limit = max(KL_FACTOR * baseline_kl, KL_FLOOR)
    figures |= {"baseline_mean_kl": rounded(baseline_kl), "limit": rounded(limit)}
    detail = f"mean KL to float32 {kl:.4g} nats at {quant}, unpruned {baseline_kl:.4g} (limit {limit:.4g})"
    return Check("kl", kl <= limit, detail, figures)
