"""The findings of `gptkit doctor`."""

import json
from collections.abc import Mapping

from gptkit.show.tables import print_rows


def print_findings(found: Mapping[str, str | None], *, as_json: bool) -> None:
    """Print what `gptkit doctor` found."""
    if as_json:
        print(json.dumps(found))
        return
    rows = [{"what": name, "found": value} for name, value in found.items()]
    print_rows(rows, ("what", "found"), as_json=False)
