"""The parity gate of an ONNX folder.

onnxruntime and onnxruntime-genai on the folder are compared with Transformers on the checkpoint.
"""

from __future__ import annotations

import filecmp
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compact.base.errors import DataError, OperatorMissingError
from compact.base.files import read_json_object
from compact.base.progress import SILENT, Progress
from compact.checkpoints.names import TOKENIZER
from compact.vocabulary.chat_rendering import CONVERSATIONS, Messages, probe, template_of
from compact.vocabulary.chat_templates import read_chat_templates
from compact.vocabulary.loading import load_tokenizer, tokenizer_document
from exporters.gate import (
    GREEDY_TOKENS,
    MAX_LOGIT_DIFFERENCE,
    MEMORY_SHARE,
    POSITIONS,
    Check,
    ParityReport,
    Reference,
    check_greedy,
    check_kl,
    fits_in_memory,
    hf_ids,
    reference_for,
    rounded,
    tokenizer_check,
)
from exporters.llamacpp.engine import Generation, kl_divergence
from exporters.onnx.folder import read_folder
from exporters.onnx.genai_engine import GenaiEngine, write_vocabulary_folder
from exporters.onnx.graph import check_graph
from exporters.onnx.ort_engine import OnnxEngine
from exporters.tokenizer_probe_texts import probe_texts

RUNTIME = "onnxruntime-genai"
# Number of last positions that are fed one at a time, as in decoding on a device.
DECODED = 32
# Maximum share of tokens with differences of genai's own. With more, genai does not support the tokenizer.
MAX_OWN_SHARE = 0.1


def check_onnx_artifact(
    checkpoint: Path,
    folder: Path,
    quant: str,
    texts: Sequence[str],
    *,
    unpruned: Path | None,
    baseline_kl: float | None,
    progress: Progress = SILENT,
) -> ParityReport:
    """Run the whole gate on a finished ONNX folder, on the CPU.

    The report is `partial` in these cases: the folder is for another provider than the CPU, the CPU provider lacks an
    operator, the model does not fit in memory, or the graph check fails, so that the graph is not run.

    Args:
        checkpoint: the checkpoint that the folder was exported from.
        folder: graph, data, genai_config.json and the tokenizer's files.
        quant: its type. `fp32` is checked by logits, other types by mean KL.
        texts: calibration texts.
        unpruned: checkpoint of the source; None if `checkpoint` is unpruned.
        baseline_kl: mean KL of the unpruned folder at the same type; None if it was not measured.
        progress: shows the checks.
    """
    described = read_folder(folder)
    data = described.model.with_name(f"{described.model.name}.data")
    with progress.task("parity gate", 4, "checks") as task:
        graph = check_graph(folder)
        task.advance()
        tokenizer = check_onnx_tokenizer(checkpoint, folder, texts, unpruned=unpruned)
        task.advance()
        if not graph.passed:
            return ParityReport((graph, tokenizer), partial=True, why_partial="the graph was not run")
        chat = render_chat(checkpoint, folder, unpruned)
        static = (graph, tokenizer)
        task.advance()
        if not fits_in_memory(checkpoint, data.stat().st_size if data.is_file() else 0, MEMORY_SHARE):
            return ParityReport((*static, *chat.checks()), partial=True)
        positions = min(POSITIONS, described.context_length)
        strict = quant == "fp32"
        reference = reference_for(checkpoint, texts, greedy=strict, positions=positions)
        try:
            # Run one after the other, because each holds the whole model.
            with OnnxEngine(folder, n_ctx=positions) as engine:
                if strict:
                    checks = check_onnx_float32(reference, engine)
                else:
                    checks = [check_kl(onnx_mean_kl(reference, engine), quant, baseline_kl)]
                prompt = chat.prompt or tuple(reference.prompt)
                plain = _answer(prompt, engine) if strict else None
            generated = check_generation(chat, prompt, folder, positions, plain)
        except OperatorMissingError:
            if described.execution_provider == "cpu":
                raise
            why = f"the CPU provider lacks an operator of a graph for {described.execution_provider}"
            return ParityReport((*static, *chat.checks()), partial=True, why_partial=why)
        task.advance()
    checked = (*static, *checks, *generated)
    if described.execution_provider == "cpu":
        return ParityReport(checked)
    why = f"it is for the provider {described.execution_provider} and was run on the CPU's"
    return ParityReport(checked, partial=True, why_partial=why)


def check_onnx_tokenizer(checkpoint: Path, folder: Path, texts: Sequence[str], *, unpruned: Path | None) -> Check:
    """Check that genai and the HF tokenizer give the same token ids on the probe texts and on `texts`.

    A difference is the runtime's own if genai also shows it with the tokenizer of the *source*: that of `unpruned`, or
    of the checkpoint if `unpruned` is None. Such differences are counted and listed. They fail the check only if there
    are too many (`MAX_OWN_SHARE`). The text of a special token becomes that token, because genai has no other mode.
    """
    tokenizer = load_tokenizer(checkpoint)
    every = [*probe_texts(list(tokenizer.get_added_vocab())), *texts]
    ours = hf_ids(tokenizer, every, parse_special=True)
    with GenaiEngine(folder, vocab_only=True) as engine:
        theirs = _genai_ids(engine, every)
    different = [n for n in range(len(every)) if ours[n] != theirs[n]]
    excused = _runtime_differences(unpruned or checkpoint, folder, every, different) if different else set()
    failed = [n for n in different if n not in excused]
    shown_by = "with the same tokenizer.json" if unpruned is None else "for the unpruned model too"
    check = tokenizer_check(every, failed, sorted(excused), "special tokens as tokens", RUNTIME, shown_by)
    # Ids that do not occur in these texts must be correct too.
    if check.passed and not _same_document(checkpoint, folder):
        return Check("tokenizer", False, "tokenizer.json is not the checkpoint's", check.figures)
    share = _odd_tokens(excused, ours, theirs) / max(1, sum(map(len, ours)))
    figures = {**check.figures, "runtime_own_tokens": rounded(share)}
    if check.passed and share > MAX_OWN_SHARE:
        detail = f"{RUNTIME} does not know this tokenizer: {share:.0%} of the tokens differ {shown_by}"
        return Check("tokenizer", False, detail, figures)
    return Check("tokenizer", check.passed, check.detail, figures)


def _same_document(checkpoint: Path, folder: Path) -> bool:
    """Return whether tokenizer.json of the folder equals the checkpoint's, or what Transformers makes of it."""
    if filecmp.cmp(checkpoint / TOKENIZER, folder / TOKENIZER, shallow=False):
        return True
    return read_json_object(folder / TOKENIZER) == tokenizer_document(checkpoint)


def _odd_tokens(numbers: set[int], ours: Sequence[list[int]], theirs: Sequence[list[int] | None]) -> int:
    return sum((Counter(ours[n]) - Counter(theirs[n] or ())).total() for n in numbers)


def _genai_ids(engine: GenaiEngine, texts: Sequence[str]) -> list[list[int] | None]:
    """Return genai's ids of each text; None for a text that it refuses."""
    try:
        return list(engine.tokenize(texts))
    except DataError:
        if len(texts) == 1:
            return [None]
        return [ids for text in texts for ids in _genai_ids(engine, [text])]


def _runtime_differences(source: Path, folder: Path, texts: Sequence[str], candidates: Sequence[int]) -> set[int]:
    """Return the candidates on which genai also differs with the tokenizer of the source."""
    wanted = [texts[n] for n in candidates]
    ours = hf_ids(load_tokenizer(source), wanted, parse_special=True)
    with tempfile.TemporaryDirectory(prefix="compact-edge-") as scratch:
        vocabulary = write_vocabulary_folder(source, folder, Path(scratch) / "vocabulary")
        with GenaiEngine(vocabulary, vocab_only=True) as engine:
            theirs = _genai_ids(engine, wanted)
    return {n for n, a, b in zip(candidates, ours, theirs, strict=True) if a != b}


def onnx_mean_kl(reference: Reference, engine: OnnxEngine) -> float:
    """Return the mean KL(float32 || artifact) in nats over the reference positions within the model's context."""
    return float(kl_divergence(*_compared(reference, engine)).mean())


def check_onnx_float32(reference: Reference, engine: OnnxEngine) -> list[Check]:
    """Check that logits are within 1e-3 of Transformers, and that the greedy text is the same up to ties."""
    expected, got = _compared(reference, engine)
    difference = float(np.abs(got - expected).max())
    detail = f"max abs difference {difference:.1e} over {len(got)} positions, {_decoded(len(got))} one at a time"
    logits = Check(
        "logits",
        difference <= MAX_LOGIT_DIFFERENCE,
        f"{detail} (limit {MAX_LOGIT_DIFFERENCE:.1g})",
        {"max_abs_difference": rounded(difference), "positions": len(got), "one_at_a_time": _decoded(len(got))},
    )
    expected_text = reference.greedy[: engine.context_length - len(reference.prompt)]
    answer = engine.generate(reference.prompt, len(expected_text))
    return [logits, check_greedy(answer, expected_text)]


def _decoded(positions: int) -> int:
    return min(DECODED, positions - 1)


def _compared(reference: Reference, engine: OnnxEngine) -> tuple[Any, Any]:
    """Return the logits of Transformers and of the artifact, each float32 [positions, vocabulary]."""
    ids = reference.ids[: engine.context_length]
    return reference.logits[: len(ids)], engine.logits(ids, n_decode=_decoded(len(ids)))


@dataclass(frozen=True)
class Chat:
    """The comparison of a checkpoint's chat template in genai and Transformers.

    Attributes:
        rendered: number of compared conversations; 0 without a chat template.
        failure: description of the failure; None if the check passed.
        own: difference that genai also shows with the source's template; None if there is none.
        prompt: token ids of the first conversation's prompt from Transformers.
        unpruned: whether the source is a separate, unpruned checkpoint.
    """

    rendered: int = 0
    failure: str | None = None
    own: str | None = None
    prompt: tuple[int, ...] = ()
    unpruned: bool = False

    def checks(self, generated: str = "", failure: str | None = None) -> list[Check]:
        """Return the check `chat`; empty without a template. `generated` says how the model continued the prompt."""
        if not self.rendered:
            return []
        figures = {"conversations": self.rendered, "runtime_own": self.own is not None}
        if wrong := self.failure or failure:
            return [Check("chat", False, wrong, figures)]
        if self.own:
            whose = "own difference, unpruned too" if self.unpruned else "own difference"
            return [Check("chat", None, f"{RUNTIME}'s {whose}: {self.own}{generated}", figures)]
        return [Check("chat", True, f"{self.rendered} conversations rendered as by Transformers{generated}", figures)]


def render_chat(checkpoint: Path, folder: Path, unpruned: Path | None) -> Chat:
    """Compare genai's chat prompts and their ids with those of Transformers.

    If genai also refuses the template or renders it differently with the source's files, the difference is the
    runtime's own.
    """
    tokenizer = load_tokenizer(checkpoint)
    if (template := template_of(tokenizer)) is not None:
        probe(checkpoint, template, str(checkpoint))  # within limits; after that, Transformers can render it here
    conversations = [messages for messages in CONVERSATIONS if _transformers_prompt(tokenizer, messages) is not None]
    if not tokenizer.chat_template or not conversations:
        return Chat()
    prompts = [str(_transformers_prompt(tokenizer, messages)) for messages in conversations]
    prompt = tuple(hf_ids(tokenizer, prompts[:1], parse_special=True)[0])
    if read_chat_templates(folder) != read_chat_templates(checkpoint):
        return Chat(len(prompts), "the folder's chat template is not the checkpoint's", None, prompt)
    with GenaiEngine(folder, vocab_only=True) as engine:
        difference = _chat_difference(tokenizer, engine, conversations)
    if difference is None:
        return Chat(len(prompts), None, None, prompt)
    source = load_tokenizer(unpruned or checkpoint)
    if source.chat_template == tokenizer.chat_template:
        with tempfile.TemporaryDirectory(prefix="compact-edge-") as scratch:
            vocabulary = write_vocabulary_folder(unpruned or checkpoint, folder, Path(scratch) / "vocabulary")
            with GenaiEngine(vocabulary, vocab_only=True) as engine:
                source_difference = _chat_difference(source, engine, conversations)
        if source_difference is not None:
            return Chat(len(prompts), None, difference, prompt, unpruned is not None)
    return Chat(len(prompts), difference, None, prompt)


def _transformers_prompt(tokenizer: Any, messages: Messages) -> str | None:
    """Return the prompt of a conversation; None if the template refuses it."""
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception:  # the template is code of the checkpoint and can raise jinja2's errors, TypeError, ...
        return None


def _chat_difference(tokenizer: Any, engine: GenaiEngine, conversations: Sequence[Messages]) -> str | None:
    """Describe the first difference between the prompts or ids of genai and Transformers; None if all are equal."""
    for messages in conversations:
        expected = str(_transformers_prompt(tokenizer, messages))
        try:
            prompt = engine.chat_prompt(messages)
        except DataError as error:
            return error.message
        if prompt != expected:
            at = next((n for n, (a, b) in enumerate(zip(prompt, expected, strict=False)) if a != b), None)
            at = min(len(prompt), len(expected)) if at is None else at
            return (
                f"the prompt is {prompt[at : at + 30]!r} at character {at}, Transformers has {expected[at : at + 30]!r}"
            )
        if _genai_ids(engine, [prompt]) != hf_ids(tokenizer, [prompt], parse_special=True):
            return f"the ids of the prompt of {len(messages)} messages differ"
    return None


def _answer(prompt: Sequence[int], engine: OnnxEngine) -> Generation | None:
    """Return onnxruntime's greedy answer to the prompt; None if the context has no room for an answer."""
    tokens = min(GREEDY_TOKENS, engine.context_length - len(prompt))
    return engine.generate(prompt, tokens, stop=engine.eog) if tokens > 0 else None


def check_generation(
    chat: Chat, prompt: Sequence[int], folder: Path, n_ctx: int, plain: Generation | None
) -> list[Check]:
    """Check that genai loads the model and continues the prompt greedily, with the same answer as `plain` if given.

    The result is part of the check `chat`, or the check `generation` without a chat template. If the prompt fills the
    context of `n_ctx` tokens, nothing is generated.
    """
    tokens = min(GREEDY_TOKENS, n_ctx - len(prompt))
    if tokens < 1:
        return chat.checks()
    with GenaiEngine(folder, n_ctx=n_ctx) as genai:
        answer = genai.generate(prompt, tokens)
    failure = None
    if plain is not None:
        greedy = check_greedy(answer, plain.ids)
        failure = None if greedy.passed else f"{RUNTIME}'s answer is not onnxruntime's: {greedy.detail}"
    if chat.rendered:
        return chat.checks(f", {len(answer.ids)} tokens generated", failure)
    detail = failure or f"{RUNTIME} continues a text by {len(answer.ids)} tokens"
    return [Check("generation", failure is None, detail, {"tokens": len(answer.ids)})]
