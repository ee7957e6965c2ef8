"""Rewrites the tables of settings and metrics in docs/operations.md from the code: `make docs`."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from style.test_docs import metric_rows, setting_rows

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
SETTINGS_HEAD = ("| variable | default | limits | why |", "|---|---|---|---|")
METRICS_HEAD = ("| metric | meaning |", "|---|---|")


def with_table(page: str, mark: str, lines: Sequence[str]) -> str:
    """`page` with what stands between the comments `mark` and `/mark` replaced."""
    table = "\n".join((f"<!-- {mark} -->", *lines, f"<!-- /{mark} -->"))
    return re.sub(f"<!-- {mark} -->.*<!-- /{mark} -->", lambda _: table, page, flags=re.DOTALL)


def main() -> None:
    """Rewrite the page in place."""
    page = PAGE.read_text(encoding="utf-8")
    page = with_table(page, "settings", (*SETTINGS_HEAD, *setting_rows()))
    metrics = [f"| `{name}` | {what} |" for name, what in metric_rows()]
    page = with_table(page, "metrics", (*METRICS_HEAD, *metrics))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
