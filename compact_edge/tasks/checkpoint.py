"""Scores tasks with a checkpoint in Transformers, in float32."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compact.base.devices import resolve_device
from compact.forward.load import load_model
from exporters.native.prefix_groups import Branch, Group, Score
from exporters.task_runtime import BATCH_SIZE, Advance, CheckpointTokenizer, Ended, GroupScores, score_in_packs

# Maximum bytes of logits in memory while scoring.
_LOGITS_BYTES = 1 << 27
# Maximum tokens per pass, unless one group has more.
_TOKENS = 2048


class CheckpointRuntime(CheckpointTokenizer):
    """See `exporters.task_runtime.Runtime`."""

    name = "Transformers, float32"

    def __init__(self, directory: Path, *, device: str = "auto", batch_size: int = BATCH_SIZE) -> None:
        """Load a checkpoint.

        Args:
            directory: the checkpoint.
            device: auto, cpu, cuda or mps.
            batch_size: maximum sequences per pass.

        Raises:
            DamagedFileError: Transformers cannot load the checkpoint.
            DataError: the tokenizer has neither BOS nor EOS.
        """
        import torch

        super().__init__(directory)
        self._model = load_model(directory, device=resolve_device(device), dtype=torch.float32)
        self._batch_size = batch_size
        self.max_length = int(getattr(self._model.config, "max_position_embeddings", None) or 2048)
        generation = getattr(self._model, "generation_config", None)
        # Transformers 5.24 renamed the parameter. 5.40 will remove the old name.
        parameters = inspect.signature(self._model.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        # Linear attention keeps one state, which Transformers cannot copy to several branches.
        self._shares_prefixes = "linear_attention" not in (getattr(self._model.config, "layer_types", None) or ())
        end_ids = getattr(generation, "eos_token_id", None)
        self.ends |= frozenset([end_ids] if isinstance(end_ids, int) else end_ids or ())

    def close(self) -> None:
        """Release the model."""
        self._model = None

    def score(self, groups: Sequence[Group], advance: Advance) -> list[GroupScores]:
        """See `Runtime.score`."""
        return score_in_packs(groups, self._pass, advance, max_branches=self._batch_size, max_tokens=_TOKENS)

    def _pass(self, groups: Sequence[Group]) -> list[GroupScores]:
        """Run all prefixes, padded on the left, then all branches, padded on the right."""
        import torch

        if not self._shares_prefixes:
            groups = [_whole(group) for group in groups]
        rows = [(g, b) for g, group in enumerate(groups) for b in range(len(group.branches))]
        branches = [groups[g].branches[b] for g, b in rows]
        length = max(len(branch.ids) for branch in branches)
        ids = self._padded([branch.ids for branch in branches], length, left=False)
        extra: dict[str, Any] = {"use_cache": False}
        with torch.inference_mode():
            width = max(len(group.prefix) for group in groups)
            if width:
                owners = torch.tensor([g for g, _ in rows], device=self._model.device)
                cache, seen = self._run_prefixes(groups, width)
                cache.batch_select_indices(owners)
                seen = seen[owners]
                # Positions continue after each branch's prefix. No scored position attends to padding on the right.
                positions = seen.sum(dim=1, keepdim=True) + torch.arange(length, device=seen.device)
                mask = torch.cat([seen, torch.ones_like(ids)], dim=1)
                extra = {self._cache_name: cache, "attention_mask": mask, "position_ids": positions}
            # Run without the head: with a large vocabulary, the logits of a long text take gigabytes.
            hidden = self._model.model(input_ids=ids, **extra).last_hidden_state  # [branches, positions, hidden]
            return self._scores(groups, rows, hidden)

    def _padded(self, parts: Sequence[Sequence[int]], length: int, *, left: bool) -> Any:
        import torch

        ids = torch.zeros((len(parts), length), dtype=torch.int64)
        for row, part in enumerate(parts):
            if part:
                place = slice(length - len(part), length) if left else slice(0, len(part))
                ids[row, place] = torch.tensor(part, dtype=torch.int64)
        return ids.to(self._model.device)

    def _run_prefixes(self, groups: Sequence[Group], width: int) -> tuple[Any, Any]:
        """Return the cache after the groups' prefixes, and a mask [groups, width] of positions with a token."""
        import torch

        ids = self._padded([group.prefix for group in groups], width, left=True)
        lengths = torch.tensor([[len(group.prefix)] for group in groups], device=ids.device)
        seen = (torch.arange(width, device=ids.device) >= width - lengths).long()
        positions = (seen.cumsum(dim=1) - 1).clamp(min=0)
        out = self._model(input_ids=ids, attention_mask=seen, position_ids=positions, use_cache=True, logits_to_keep=1)
        return out[self._cache_name], seen

    def _scores(self, groups: Sequence[Group], rows: Sequence[tuple[int, int]], hidden: Any) -> list[GroupScores]:
        """Compute scores from hidden states [rows, positions, hidden]. Row r belongs to (group, branch) `rows[r]`."""
        places: dict[tuple[int, int], int] = {}  # (row, position) -> index; several targets may share one
        wanted: list[tuple[int, int]] = []  # (index of the place, target id)
        for row, (g, b) in enumerate(rows):
            branch = groups[g].branches[b]
            for target in branch.targets:
                begin = len(branch.ids) - len(target)
                wanted += [
                    (places.setdefault((row, begin + index), len(places)), token) for index, token in enumerate(target)
                ]
        values, best = self._log_probabilities(hidden, list(places), wanted)
        at = 0
        result: list[GroupScores] = [[] for _ in groups]
        for g, b in rows:
            scores = []
            for target in groups[g].branches[b].targets:
                end = at + len(target)
                scores.append(Score(sum(values[at:end]), all(best[at:end])))
                at = end
            result[g].append(scores)
        return result

    def _log_probabilities(
        self, hidden: Any, places: Sequence[tuple[int, int]], wanted: Sequence[tuple[int, int]]
    ) -> tuple[list[float], list[bool]]:
        """Return for each (index of its place, id) the log-probability, and whether the id is the most likely one."""
        import torch

        from compact.distill.loss import head_logits, head_settings

        head = self._model.get_output_embeddings().weight
        scale, cap = head_settings(self._model.config)
        at = torch.tensor(places, device=hidden.device)
        numbers, tokens = torch.tensor(wanted, device=hidden.device).unbind(1)
        values = torch.empty(len(wanted), dtype=torch.float32, device=hidden.device)
        best = torch.empty(len(wanted), dtype=torch.bool, device=hidden.device)
        size = max(1, _LOGITS_BYTES // (4 * head.shape[0]))
        for start in range(0, len(places), size):
            part = at[start : start + size]
            logits = head_logits(hidden[part[:, 0], part[:, 1]], head, scale, cap)
            here = ((numbers >= start) & (numbers < start + size)).nonzero()[:, 0]
            place, token = numbers[here] - start, tokens[here]
            values[here] = logits[place, token] - logits.logsumexp(dim=1)[place]
            best[here] = logits.argmax(dim=1)[place] == token
        return values.tolist(), best.tolist()

    def generate(
        self, prompts: Sequence[list[int]], max_tokens: int, ended: Ended, advance: Advance
    ) -> list[list[int]]:
        """See `Runtime.generate`."""
        order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
        results: list[list[int]] = [[] for _ in prompts]
        for begin in range(0, len(order), self._batch_size):
            part = order[begin : begin + self._batch_size]
            for index, generated in zip(part, self._greedy([prompts[i] for i in part], max_tokens, ended), strict=True):
                results[index] = generated
                advance(1)
        return results

    def _greedy(self, prompts: Sequence[list[int]], max_tokens: int, ended: Ended) -> list[list[int]]:
        """Decode greedily, ignoring generation_config.json, whose repetition penalty would change the results."""
        import torch

        generated: list[list[int]] = [[] for _ in prompts]
        running = set(range(len(prompts)))
        width = max(map(len, prompts))
        ids = self._padded(prompts, width, left=True)
        lengths = torch.tensor([[len(prompt)] for prompt in prompts], device=ids.device)
        seen = (torch.arange(width, device=ids.device) >= width - lengths).long()
        positions = (seen.cumsum(dim=1) - 1).clamp(min=0)
        cache: Any = None
        with torch.inference_mode():
            for _ in range(max_tokens):
                out = self._model(
                    input_ids=ids,
                    attention_mask=seen,
                    position_ids=positions,
                    use_cache=True,
                    logits_to_keep=1,
                    **{self._cache_name: cache},
                )
                cache = out[self._cache_name]
                chosen = out.logits[:, -1].argmax(dim=-1)
                for row, token in enumerate(chosen.tolist()):
                    if row not in running:
                        continue
                    if token not in self.ends:
                        generated[row].append(token)
                    if token in self.ends or ended(generated[row]):
                        running.discard(row)
                if not running:
                    break
                ids, positions = chosen[:, None], positions[:, -1:] + 1
                seen = torch.cat([seen, torch.ones_like(ids)], dim=1)
        return generated


def _whole(group: Group) -> Group:
    """Return the same sequences without a shared prefix. Each branch contains the prefix."""
    branches = (Branch((*group.prefix, *branch.ids), branch.targets) for branch in group.branches)
    return Group((), tuple(branches))
