"""The JSON Schema of a record in the documentation is that of the models that read records."""

from pathlib import Path

import record_schema

DOCS = Path(record_schema.__file__).parents[1] / "reference"


def test_the_committed_schema_is_current(tmp_path):
    record_schema.main(tmp_path)
    for name, text in record_schema.pages().items():
        again = "run python docs/tools/record_schema.py docs/reference"
        assert (DOCS / name).read_text(encoding="utf-8") == text == (tmp_path / name).read_text(encoding="utf-8"), again
    page = (DOCS / "record.md").read_text(encoding="utf-8")
    assert "| `n_unscored` | integer | no |" in page and "| `metrics` | table of MetricRecord | yes |" in page
