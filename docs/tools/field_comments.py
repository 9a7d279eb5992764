"""A griffe extension for the reference of `harness.api`: the comment or `Field(description=...)` of a field documents it.

    tokens: Tensor  # [B, P] int64, left-padded
    lr: float = Field(5e-4, gt=0, description="Adam's learning rate")

griffe is the library with which mkdocstrings parses the source.
"""

from __future__ import annotations

import ast
import io
import tokenize
from typing import Any

import griffe


class FieldComments(griffe.Extension):
    """Set the docstring of each attribute without one from its description or its comment."""

    def on_attribute_instance(self, *, node: ast.AST | griffe.ObjectNode, attr: griffe.Attribute, **_: Any) -> None:
        """Set the docstring of one attribute; griffe calls this for each attribute that it parses."""
        if attr.docstring or not isinstance(node, ast.AnnAssign | ast.Assign):
            return
        text = described(node.value) or comment(attr)
        if text:
            attr.docstring = griffe.Docstring(text[0].upper() + text[1:], parent=attr)


def described(value: ast.expr | None) -> str:
    """The description of a pydantic field; empty if there is none."""
    keywords = value.keywords if isinstance(value, ast.Call) else []
    return next((k.value.value for k in keywords if k.arg == "description" and isinstance(k.value, ast.Constant)), "")


def comment(attribute: griffe.Attribute) -> str:
    """The comment at the end of the line of an attribute; empty if there is none."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(attribute.source.strip() + "\n").readline))
    except tokenize.TokenError:
        return ""
    text = next((t.string for t in tokens if t.type == tokenize.COMMENT), "")
    return "" if text.startswith(("# type:", "# noqa")) else text.removeprefix("#").strip()
