r"""Write the page of the papers' claims from records.

    python docs/tools/claims_page.py docs/results/claims.md --reference results/reference --claims results/claims \
        --measured results/claims.jsonl --picture docs/results/claims-log-ratio.png

`--reference` has the runs of the reference study, `--claims` those that vary one setting, and `--measured` what
`claims_measure.py` measured on their saved policies. A claim without its runs is undecided.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from claims.catalogue import CLAIMS
from claims.page import page, tried
from claims.plot import draw
from claims.records import Records, read_measured
from readme_tables import runs_below, write

from harness.core.errors import EmptySelection
from harness.core.process import script


def main(arguments: list[str]) -> None:
    """Write the page and its picture; raises EmptySelection if there is no record."""
    parser = argparse.ArgumentParser(prog="python docs/tools/claims_page.py", allow_abbrev=False)
    parser.add_argument("page", type=Path)
    parser.add_argument("--reference", type=Path, nargs="+", default=[], help="folders of records of the reference study")
    parser.add_argument("--claims", type=Path, nargs="+", default=[], help="folders of records of the claims study")
    parser.add_argument("--measured", type=Path, help="quantities measured on saved policies")
    parser.add_argument("--picture", type=Path, help="picture of log-ratio against reward, which is drawn anew")
    args = parser.parse_args(arguments)
    records = Records(runs_below(args.reference), runs_below(args.claims), read_measured(args.measured))
    if not records.reference and not records.varied:
        raise EmptySelection("no records for the page of claims; run make claims first")
    drawn = args.picture is not None and draw(records, args.picture)
    command = "python docs/tools/claims_page.py " + " ".join(arguments)
    write(args.page, page(tried(CLAIMS, records), command, args.picture.name if drawn else None))


if __name__ == "__main__":
    script(main)
