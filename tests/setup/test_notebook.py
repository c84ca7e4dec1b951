"""The setup in a real notebook kernel: a bar, readable results, and no token."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from stand_in_hub import StandInHub

RUN_CELLS = Path(__file__).parents[1] / "tools" / "run_cells.py"
CELLS = (
    "from llamatelemetry import LlamaCppClient, ServerManager, doctor, prepare\n"
    "prepared = prepare('owner/Demo-GGUF:Q8_0', 'embedded')\n"
    "prepared",
    "prepare('owner/Demo-GGUF:Q8_0', 'embedded', dry_run=True)",
    "config = prepared.config(context_size=512, threads=1)\n"
    "with ServerManager(config, engine=prepared.engine, timeout=60) as server:\n"
    "    with LlamaCppClient(server.get_url()) as client:\n"
    "        asked = [{'role': 'user', 'content': 'What is GGUF?'}]\n"
    "        print(client.chat_completion(asked).choices[0].message.content)",
    "doctor()",
    "try:\n"
    "    prepare('owner/none:x.gguf', 'embedded')\n"
    "except Exception as error:\n"
    "    print(repr(error), vars(error))",
)


def test_the_one_cell_in_a_real_notebook(
    hub: StandInHub, demo_model: Path, tmp_path: Path
) -> None:
    """A private model is fetched with a bar, and answers; the token stands nowhere."""
    hub.add("owner/Demo-GGUF", "demo-Q8_0.gguf", demo_model.read_bytes(), private=True)
    variables = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": hub.token,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
    }
    done = subprocess.run(
        [sys.executable, str(RUN_CELLS), *CELLS],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
    assert hub.token not in done.stdout
    assert hub.token not in done.stderr
    first, plan, chat, found, wrong = json.loads(done.stdout)["cells"]
    kinds = {kind for output in first["outputs"] for kind in output.get("data", ())}
    assert "application/vnd.jupyter.widget-view+json" in kinds
    assert "demo-Q8_0.gguf" in json.dumps(first["outputs"])
    assert "here" in json.dumps(plan["outputs"])
    assert "GGUF is a file format" in json.dumps(chat["outputs"])
    assert "yes, from HF_TOKEN" in json.dumps(found["outputs"])
    assert "no such repository" in json.dumps(wrong["outputs"])
