from __future__ import annotations

import platform
import re
import subprocess

import torch

from causaltrace.report import about


def git(folder, *args):
    subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x@y", *args], cwd=folder, check=True)


def test_revision(tmp_path):
    assert about.revision(tmp_path) == ""
    git(tmp_path, "init", "-q")
    assert about.revision(tmp_path) == "", "nothing is committed yet"
    (tmp_path / "a.py").write_text("1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "first")
    clean = about.revision(tmp_path)
    assert re.fullmatch("[0-9a-f]{12}", clean)
    git(tmp_path, "tag", "v1")
    assert about.revision(tmp_path) == clean, "tags do not replace it"
    (tmp_path / "new.py").write_text("1\n")
    assert about.revision(tmp_path) == clean
    (tmp_path / "a.py").write_text("2\n")
    assert about.revision(tmp_path) == clean + "+"


def test_no_git_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert about.revision(tmp_path) == ""
    assert about.revision(tmp_path / "none") == ""


def test_run():
    run = about.made_now("eval.py --x")
    assert (run.command, run.revision) == ("eval.py --x", "")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", run.time)
    versions = dict(run.versions)
    assert versions["torch"] == str(torch.__version__) and versions["Python"] == platform.python_version()


def test_files_below_the_root(tmp_path):
    assert about.below(str(tmp_path / "a" / "b.py"), tmp_path) == "a/b.py"
    assert about.below("a/b.py", tmp_path) == "a/b.py"
    for elsewhere in ("/elsewhere/b.py", "<string>", "", "../b.py", str(tmp_path / ".." / "b.py")):
        assert about.below(elsewhere, tmp_path) is None
