"""The comment beside a field, or the description of a setting, is its documentation on the page of `harness.api`."""

from pathlib import Path

import pytest

griffe = pytest.importorskip("griffe", reason="of the extra `docs`")
field_comments = pytest.importorskip("field_comments")

SOURCE = '''
from pydantic import Field

class A:
    tokens: int  # [B, P] int64
    """has a docstring"""
    mask: int  # [B, P] bool
    lr: float = Field(
        5e-4, description="Adam's learning rate"
    )  # not this
    text: str = "# no comment"
    plain: int
    typed = []  # type: ignore[misc]
'''


def test_what_stands_beside_a_field(tmp_path: Path):
    (tmp_path / "sample.py").write_text(SOURCE)
    extensions = griffe.load_extensions(field_comments.FieldComments)
    made = griffe.load("sample", search_paths=[str(tmp_path)], extensions=extensions)["A"].members
    told = {name: made[name].docstring.value if made[name].docstring else None for name in made}
    assert told == {
        "tokens": "has a docstring", "mask": "[B, P] bool", "lr": "Adam's learning rate", "text": None, "plain": None,
        "typed": None,
    }  # fmt: skip
