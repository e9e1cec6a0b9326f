"""The command line with the real engine, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import causaltrace

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(causaltrace.__file__).parents[1])}
EVAL = """
import sys
import torch
import causaltrace

torch.manual_seed(0)
tokens = torch.randint(0, 11, (33,))
emb, head = torch.nn.Embedding(11, 8), torch.nn.Linear(8, 11)

def evaluate(shift):
    with torch.no_grad():
        x, y = tokens[:-1], tokens[1:]
        h = emb(x)
        h = h + torch.roll(h, shift, 0) * (torch.arange(32) > 0)[:, None]
        return torch.nn.functional.cross_entropy(head(h), y, reduction="sum").item()

shift = int(sys.argv[1])
"""
LABEL = EVAL + "causaltrace.label(tokens)\nprint('nats', evaluate(shift))\n"
WATCH = EVAL + "with causaltrace.watch(tokens):\n    print('nats', evaluate(shift))\n"
FILES = (
    EVAL
    + """
import os
import numpy as np
tokens.numpy().tofile('val.bin')
os.utime('val.bin', (0, 0))
causaltrace.label_files('val.bin')
tokens = torch.from_numpy(np.fromfile('val.bin', np.int64))
print('nats', evaluate(shift))
"""
)


@pytest.mark.parametrize("text", [LABEL, WATCH, FILES], ids=["label", "watch", "label_files"])
@pytest.mark.parametrize(("shift", "code", "status"), [("1", 0, "clean"), ("-1", 1, "violation")])
def test_verdict(tmp_path, text, shift, code, status):
    script, out = tmp_path / "my_eval.py", tmp_path / "report.json"
    script.write_text(text)
    command = [sys.executable, "-m", "causaltrace", "run", "--json", str(out), str(script), shift]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT)
    assert result.returncode == code, result.stdout + result.stderr
    assert result.stdout.startswith("nats ")
    assert f"causaltrace: {status.upper()}" in result.stdout
    data = json.loads(out.read_text())
    assert data["status"] == status
    assert data["scored"] == 32
    if status == "violation":
        assert any(v["at"].startswith(str(script)) for v in data["violations"])
