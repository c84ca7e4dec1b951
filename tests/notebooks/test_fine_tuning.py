"""Notebook 11 runs where the repository is not, and brings its own lines of writing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import gguf
import nbformat
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "11_after_fine_tuning.ipynb"
SCRIPT = ROOT / "binaries" / "demo_model" / "convert.py"


class Values:
    """Weights as the notebook has them: tensors that become arrays when asked."""

    def __init__(self, values: np.ndarray) -> None:
        self.ndim, self._values = values.ndim, values

    def numpy(self) -> np.ndarray:
        """Return the array."""
        return self._values


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_it_quantizes_as_the_demo_models_own_script(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same weights, notebook and script write the same bytes, type for type."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    source = next(
        cell.source for cell in cells if "def quantize_tensors" in cell.source
    )
    own: dict[str, Any] = {"gguf": gguf}
    start = source.index("def quantize_tensors")
    exec(source[start : source.index("def write_gguf")], own)
    spec = importlib.util.spec_from_file_location("demo_model_convert", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)
    spec.loader.exec_module(script)
    random = np.random.default_rng(7)
    weights = {
        "token_embd.weight": random.normal(size=(96, 192)).astype(np.float32),
        "blk.0.attn_q.weight": random.normal(size=(192, 192)).astype(np.float32),
        "output_norm.weight": random.normal(size=192).astype(np.float32),
    }

    ours = own["quantize_tensors"](
        {name: Values(values) for name, values in weights.items()}, kind
    )
    theirs = script.quantize_tensors(weights, kind.lower())

    assert ours.keys() == theirs.keys()
    for name, (data, tensor_type) in ours.items():
        assert tensor_type == theirs[name][1]
        assert data.tobytes() == theirs[name][0].tobytes()
