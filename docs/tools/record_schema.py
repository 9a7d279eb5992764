"""Write the JSON Schema of a record and the page about it: `python docs/tools/record_schema.py docs/reference`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from harness.records.schema import json_schema

HEAD = """# What a record holds

Written by `python docs/tools/record_schema.py docs/reference` from the models that read records (`harness.records.schema`); the
same as [JSON Schema](record.schema.json). Further keys are welcome in every object: an addition does not change the version.
Numbers are finite; null stands for what is not there.
"""


def pages() -> dict[str, str]:
    """The files of the reference by name."""
    schema = json_schema()
    files: dict[str, str] = {}
    for name, ref in schema["properties"].items():
        model = ref["$ref"].rpartition("/")[2]
        files[model] = f"{files[model]}, {name}" if model in files else name
    order = [*files, *sorted(set(schema["$defs"]) - set(files))]
    parts = [_part(files.get(name, name), schema["$defs"][name]) for name in order]
    return {"record.schema.json": json.dumps(schema, indent=1) + "\n", "record.md": "\n".join([HEAD, *parts])}


def _part(title: str, model: dict[str, Any]) -> str:
    required = set(model.get("required", ()))
    rows = [f"| `{key}` | {_kind(of)} | {'yes' if key in required else 'no'} |" for key, of in model["properties"].items()]
    return "\n".join(
        [f"## {title}\n", model.get("description", "") + "\n", "| key | type | required |", "|---|---|---|", *rows, ""]
    )


def _kind(of: dict[str, Any]) -> str:
    if "$ref" in of:
        return of["$ref"].rpartition("/")[2]
    if "anyOf" in of:
        return " or ".join(map(_kind, of["anyOf"]))
    if "enum" in of:
        return ", ".join(map(str, of["enum"]))
    if of.get("type") == "array":
        return f"list of {_kind(of['items'])}"
    values = of.get("additionalProperties")
    return f"table of {_kind(values)}" if isinstance(values, dict) and values else str(of.get("type", "any"))


def main(words: list[str]) -> None:
    """Write the files of the reference; exits with 2 for unknown arguments."""
    parser = argparse.ArgumentParser(prog="python docs/tools/record_schema.py", description=(__doc__ or "").partition(":")[0])
    parser.add_argument("folder", type=Path, help="folder of the reference")
    folder = parser.parse_args(words).folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
