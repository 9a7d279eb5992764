"""The check of the built site, on pages that break each of its rules."""

import subprocess
import sys
from pathlib import Path

import pytest
import site_check

from harness import api
from harness.core.errors import Mismatch, MissingPrerequisite

ENTRY = '<h3 id="harness.api.{0}">{0}</h3><p>What it is and what it does.</p>'


def site(folder: Path, names: list[str], head: str = "") -> Path:
    (folder / "reference").mkdir()
    body = "".join(ENTRY.format(name) for name in names)
    (folder / "reference/api.html").write_text(f"<head>{head}</head>{body}")
    return folder


def test_a_whole_site_passes(tmp_path):
    local = (
        '<link rel="stylesheet" href="../a.css"><link rel="canonical" href="https://example.org/"><script src="b.js"></script>'
    )
    site_check.check(site(tmp_path, api.__all__, local))


def test_a_name_without_an_entry_or_without_text(tmp_path):
    folder = site(tmp_path, api.__all__[1:])
    with pytest.raises(Mismatch, match=f"lacks {api.__all__[0]};"):
        site_check.check(folder)
    page = folder / "reference/api.html"
    page.write_text(page.read_text() + f'<h3 id="harness.api.{api.__all__[0]}">name</h3>')
    with pytest.raises(Mismatch, match=f"lacks {api.__all__[0]};"):
        site_check.check(folder)


FOREIGN = ('<script src="https://cdn.example.org/x.js"></script>', '<link rel="stylesheet" href="//fonts.example.org/f">')


@pytest.mark.parametrize("head", FOREIGN)
def test_what_another_host_serves(tmp_path, head):
    with pytest.raises(Mismatch, match="from another host"):
        site_check.check(site(tmp_path, api.__all__, head))


def test_no_site(tmp_path):
    with pytest.raises(MissingPrerequisite, match="make docs"):
        site_check.check(tmp_path)
    words = [sys.executable, site_check.__file__, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 3 and done.stderr.startswith("error: no ") and len(done.stderr.splitlines()) == 1
