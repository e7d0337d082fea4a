"""The state of a run of training on disk: what a run that was cut goes on from, and the best model so far."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compact.base.errors import DamagedFileError
from compact.base.files import publish, read_json_object, write_json
from compact.distill.state import State

if TYPE_CHECKING:
    from compact.distill.train import Trainer

STATE = "state.json"
WEIGHTS = "weights.safetensors"
BEST = "best.safetensors"
_SETTINGS = "optimizer.json"
# Runs that were not used for this long are deleted: 30 days.
_UNUSED_SECONDS = 30 * 24 * 3600
# safetensors name of a type -> torch's.
TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def save(directory: Path, trainer: Trainer, state: State, *, is_best: bool) -> None:
    """Write the run's state; the directory is replaced whole, so a run that is cut here goes on from the one before.

    Args:
        directory: of this run.
        trainer, state: what to write: float32 weights, both moments of AdamW, and where the run is.
        is_best: whether the weights are the best so far.
    """
    from safetensors.torch import save_file

    weights = trainer.parameters
    tensors = {f"weight.{name}": parameter.detach().cpu().contiguous() for name, parameter in weights.items()}
    steps = {}
    for name, parameter in weights.items():
        moments = trainer.optimizer.state.get(parameter, {})
        for key in ("exp_avg", "exp_avg_sq"):
            if key in moments:
                tensors[f"{key}.{name}"] = moments[key].cpu().contiguous()
        if "step" in moments:
            steps[name] = float(moments["step"])
    earlier = directory / BEST
    with publish(directory, force=True) as work:
        save_file(tensors, str(work / WEIGHTS))
        write_json(work / _SETTINGS, steps)
        write_json(work / STATE, state.as_dict())
        if is_best:
            _write_best(work / BEST, trainer)
        elif earlier.is_file():
            shutil.copyfile(earlier, work / BEST)


def save_best(directory: Path, trainer: Trainer) -> None:
    """Write the weights alone, as the best so far: all that a run which nobody can go on with needs at its end."""
    with publish(directory, force=True) as work:
        _write_best(work / BEST, trainer)


def _write_best(path: Path, trainer: Trainer) -> None:
    from safetensors.torch import save_file

    best = {n: weight.detach().to(trainer.dtypes[n]).cpu().contiguous() for n, weight in trainer.parameters.items()}
    save_file(best, str(path), metadata={"format": "pt"})


def write_updates(directory: Path, earlier: Path | None, target: Path) -> None:
    """The best model of a run as a plan's updates, with those tensors of `earlier` ones that were not trained."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(str(earlier)) if earlier is not None else {}
    tensors.update(load_file(str(directory / BEST)))
    save_file(tensors, str(target), metadata={"format": "pt"})


def load(directory: Path, trainer: Trainer) -> State:
    """Bring a trainer to where a run was cut; a fresh state where there was none.

    Raises:
        DamagedFileError: files that are no state of this run.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (directory / STATE).is_file():
        return State()
    try:
        state = State(**read_json_object(directory / STATE))
        steps = read_json_object(directory / _SETTINGS)
        tensors = load_file(str(directory / WEIGHTS))
        for name, parameter in trainer.parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"weight.{name}"])
            if name in steps:
                trainer.optimizer.state[parameter] = _moments(tensors, name, steps[name], parameter)
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError) as error:
        raise DamagedFileError(
            f"{directory}: not the state of a recovery ({' '.join(str(error).split())[:120]})", "remove the folder"
        ) from error
    return state


def _moments(tensors: Mapping[str, torch.Tensor], name: str, step: float, parameter: torch.Tensor) -> dict[str, Any]:
    moments: dict[str, Any] = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
    moments["step"] = torch.tensor(step, device=parameter.device)  # where the fused AdamW has it
    return moments


def delete_unused(entries: Path) -> None:
    """Delete what was not used for 30 days: the states of unfinished runs, each several times as large as its model,
    and the teacher's answers.

    Args:
        entries: the directory of all of them; each is a directory whose time of change is that of its last use.
    """
    for path in entries.iterdir() if entries.is_dir() else ():
        try:
            is_old = time.time() - path.stat().st_mtime > _UNUSED_SECONDS
        except OSError:  # another process has just replaced it
            continue
        if is_old:
            shutil.rmtree(path, ignore_errors=True)
