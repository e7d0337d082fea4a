"""Keeps the libraries underneath from writing to the terminal, reaching for the network unasked and spinning.

Transformers draws a bar for every model it loads and logs advice for people who train; `tokenizers` warns when a
process starts a child after it used threads. A user of this command can do nothing about either. These settings are
the process's, so only the command line makes them, before it imports anything heavy.
"""

from __future__ import annotations

import os
import sys

# What the user has set stays: TRANSFORMERS_VERBOSITY=info brings the messages back.
_OFFLINE = "HF_HUB_OFFLINE"
_ENVIRONMENT = {
    "DATASETS_VERBOSITY": "critical",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_VERBOSITY": "error",
    _OFFLINE: "1",
    "TOKENIZERS_PARALLELISM": "true",
    "TRANSFORMERS_VERBOSITY": "error",
    # torch's threads spin while they wait for each other; beside other work on the machine that is many times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
}


# What lm_eval draws and forks besides.
_TASKS = {"TQDM_DISABLE": "1", "DISABLE_MULTIPROC": "1"}


def quiet_libraries(*named: str | None, tasks: bool = False, hub: bool = False) -> None:
    """Silence progress bars and advice of the Hugging Face libraries, and keep them off the network.

    Args:
        named: the model and the calibration that the user named; only where one of them is on the Hub may the
            libraries reach for the network.
        tasks: whether lm_eval is to be imported.
        hub: whether a task's data set on the Hub was named.
    """
    from compact.calibration.hub_dataset import names_hub_dataset
    from compact.sources.hub import names_hub_model

    online = hub or any(word is not None and (names_hub_model(word) or names_hub_dataset(word)) for word in named)
    for name, value in {**_ENVIRONMENT, **(_TASKS if tasks else {})}.items():
        if not (online and name == _OFFLINE):
            os.environ.setdefault(name, value)
    if "transformers" in sys.modules:  # it read the variables when it was imported
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()
