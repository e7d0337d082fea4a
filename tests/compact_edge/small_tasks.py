"""A folder of small tasks for lm_eval: its data are a Python function beside them, so nothing is fetched or cached."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

# The choices of one question have unlike lengths; questions begin alike, so that sequences share more than an answer.
QUESTIONS = [
    {
        "question": f"Day {index}: the keeper counted {index * 7} waves, then came",
        "choices": ["a storm", "a ship with twenty sails", "no", "the ice of a very long winter"][: 2 + index % 3],
        "answer": index % 2,
    }
    for index in range(12)
]
DATA = f"""
import datasets

def questions(**_):
    return {{"test": datasets.Dataset.from_list({QUESTIONS!r})}}

def broken(**_):
    raise RuntimeError("no data\\nhere")
"""
YAML = {
    "choice": """
        task: small_choice
        custom_dataset: !function data.questions
        test_split: test
        fewshot_split: test
        output_type: multiple_choice
        doc_to_text: "{{question}}\\nAnswer:"
        doc_to_choice: choices
        doc_to_target: answer
        metric_list:
          - {metric: acc, aggregation: mean, higher_is_better: true}
          - {metric: acc_norm, aggregation: mean, higher_is_better: true}
        metadata: {version: 3.0}
        """,
    "letters": """
        include: choice.yaml
        task: small_letters
        doc_to_choice: ["A", "B", "C"]
        """,
    "words": """
        task: small_words
        custom_dataset: !function data.questions
        test_split: test
        output_type: loglikelihood
        doc_to_text: ""
        doc_to_target: "{{question}}"
        metric_list:
          - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
          - {metric: acc, aggregation: mean, higher_is_better: true}
        """,
    "written": """
        task: small_written
        custom_dataset: !function data.questions
        test_split: test
        output_type: generate_until
        doc_to_text: "{{question}}"
        doc_to_target: "{{choices[0]}}"
        generation_kwargs: {until: ["e", "zzzz"], max_gen_toks: 20, do_sample: false}
        metric_list:
          - {metric: exact_match, aggregation: mean, higher_is_better: true}
        """,
    "sampled": """
        include: written.yaml
        task: small_sampled
        generation_kwargs: {until: ["e"], max_gen_toks: 20, do_sample: true, temperature: 0.7}
        """,
    "endless": """
        include: written.yaml
        task: small_endless
        generation_kwargs: {until: ["e"], max_gen_toks: 256}
        """,
    "broken": """
        include: choice.yaml
        task: small_broken
        custom_dataset: !function data.broken
        """,
    "hub": """
        include: choice.yaml
        task: small_hub
        dataset_path: nobody/nothing
        custom_dataset:
        """,
    "group": """
        group: small_group
        task: [small_choice, small_letters]
        aggregate_metric_list:
          - {metric: acc, aggregation: mean, weight_by_size: true}
        """,
}


def write_tasks(folder: Path) -> None:
    """Write the task files and their data."""
    (folder / "data.py").write_text(DATA, encoding="utf-8")
    for name, text in YAML.items():
        (folder / f"{name}.yaml").write_text(dedent(text), encoding="utf-8")
