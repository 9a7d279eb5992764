"""The lower bounds of pyproject.toml as pip's constraints, and the versions of this environment.

python constraints/bounds.py oldest      the lower bound of every dependency, the extra `test` among them
python constraints/bounds.py tested      what is installed here of all that the package needs, for constraints/tested.txt
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


def requirements() -> Iterator[Requirement]:
    """Every direct requirement except those of `dev` and `docs` and the package itself."""
    extras = (line for name, lines in PROJECT["optional-dependencies"].items() if name not in ("dev", "docs") for line in lines)
    found = map(Requirement, (*PROJECT["dependencies"], *extras))
    return (r for r in found if r.name != PROJECT["name"])


def oldest() -> Iterator[str]:
    """`name==lower` of each requirement; raises ValueError where one has no lower bound."""
    for requirement in requirements():
        lower = [s.version for s in requirement.specifier if s.operator == ">="]
        if not lower:
            raise ValueError(f"{requirement} has no lower bound; give it one in pyproject.toml")
        yield f"{requirement.name}=={lower[0]}"


def tested() -> Iterator[str]:
    """`name==version` of all that is installed here because the package needs it."""
    wanted, seen = [requirement.name for requirement in requirements()], set()
    while wanted:
        name = wanted.pop()
        try:
            found = distribution(name)
        except PackageNotFoundError:  # of another platform, or of an extra that nobody asked for
            continue
        if (line := f"{found.name}=={found.version.partition('+')[0]}") in seen:
            continue
        seen.add(line)
        needs = map(Requirement, found.requires or ())
        wanted += [r.name for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})]
    return iter(sorted(seen, key=str.lower))


if __name__ == "__main__":
    print("\n".join({"oldest": oldest, "tested": tested}[sys.argv[1]]()))
