"""A build of a model on the Hub under a licence that binds the name, calibrated on its default data set."""

from __future__ import annotations

import gzip
import json
import subprocess
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from compact.checkpoints.gguf_file import read_gguf
from tests.checkpoints import TEXTS
from tests.hub_standin import running_hub
from tests.small_builds import ROOT, Workshop, command, leftovers, proportional

pytest.importorskip("datasets", reason="datasets is not installed (the extra `datasets`)")

CARD = "---\nlicense: llama3.2\nlanguage: [en]\nbase_model: meta-llama/Llama-3.2-1B\n---\n# A fine-tune\n"


@pytest.mark.slow
def test_a_hub_model_from_its_name_to_the_published_directory(tmp_path: Path) -> None:
    shop = Workshop(tmp_path / "shop")
    (shop.model / "README.md").write_text(CARD)
    (shop.model / "LICENSE.txt").write_text("LLAMA 3.2 COMMUNITY LICENSE AGREEMENT\n")
    records = "".join(json.dumps({"text": f"{n} {text}"}) + "\n" for n, text in enumerate(TEXTS * 8))
    work = tmp_path / "work"
    work.mkdir()
    with running_hub() as hub:
        model = hub.add_folder("maker/my-finetune", shop.model)
        data = hub.add("allenai/c4", {"en/c4-train.00000.json.gz": gzip.compress(records.encode())}, dataset=True)
        changes = {"COMPACT_EDGE_CACHE": str(shop.cache), "PYTHONPATH": str(ROOT)}
        environment = hub.environment(tmp_path / "home", **changes)
        build = command(
            *("build", "maker/my-finetune", "--target", "gguf", "--quant", "Q8_0", "--no-baseline", "--threads", "1"),
            *("--eval-text", str(shop.text), "--calibration-tokens", "512", *proportional()),
        )
        # C4 has a configuration `en`; this repository has none, and says so before anything is built.
        done = subprocess.run(build, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert "allenai/c4" in done.stderr.splitlines()[-2]
        assert list(work.iterdir()) == []
        card = "---\nconfigs:\n- config_name: en\n  data_files: en/*.json.gz\n---\n"
        data = hub.add("allenai/c4", {**data.files, "README.md": card.encode()}, dataset=True)
        done = subprocess.run(build, cwd=work, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (out,) = work.iterdir()
    assert out.name == "Llama-my-finetune-compact"
    folder = out / "gguf"
    (file,) = folder.glob("*.gguf")
    assert file.name.startswith("Llama-my-finetune-compact-")
    assert {"LICENSE.txt", "NOTICE", "README.md", "plan.json"} <= {path.name for path in folder.iterdir()}
    assert "Llama 3.2 Community License, Copyright © Meta" in (folder / "NOTICE").read_text(encoding="utf-8")
    card_of = ModelCard.load(folder / "README.md")
    assert card_of.data.base_model == "maker/my-finetune"
    assert card_of.data.license == "llama3.2"
    assert "**Built with Llama**" in card_of.text
    assert f"`maker/my-finetune@{model.commit}`" in card_of.text
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"]["hub"] == f"maker/my-finetune@{model.commit}"
    assert manifest["calibration"]["name"] == f"allenai/c4@{data.commit}:en:train"
    assert manifest["calibration"]["n_tokens"] == 512
    assert "NOTICE" in manifest["files"]
    assert "Llama 3.2 Community License: the name must begin with 'Llama'" in done.stderr
    values = read_gguf(file).values
    assert values["general.license"] == "llama3.2"
    assert values["general.languages"] == ["en"]
    assert leftovers(work, tmp_path / "home") == []
    verify = subprocess.run(command("verify", str(folder)), cwd=ROOT, capture_output=True, text=True, check=False)
    assert verify.returncode == 0, verify.stderr
