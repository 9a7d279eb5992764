"""The JSON Schema of a record in the documentation is that of the models that read records."""

from pathlib import Path

import pytest
import record_schema

DOCS = Path(record_schema.__file__).parents[1] / "reference"


def test_the_committed_schema_is_current(tmp_path):
    record_schema.main([str(tmp_path)])
    for name, text in record_schema.pages().items():
        again = "run python docs/tools/record_schema.py docs/reference"
        assert (DOCS / name).read_text(encoding="utf-8") == text == (tmp_path / name).read_text(encoding="utf-8"), again
    page = (DOCS / "record.md").read_text(encoding="utf-8")
    assert "| `n_unscored` | integer | no |" in page and "| `metrics` | table of MetricRecord | yes |" in page
    assert "## samples/base.parquet, samples/final.parquet" in page and "| `nll_tokens` | number or null | no |" in page


def test_an_unknown_argument_makes_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in (["--hlep"], ["a", "b"]):
        with pytest.raises(SystemExit, match="2"):
            record_schema.main(words)
    assert "usage: " in capsys.readouterr().err and not list(tmp_path.iterdir())
