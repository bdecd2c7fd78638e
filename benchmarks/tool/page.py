"""Put a generated table into a page: the lines between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def put(page: Path, name: str, text: str) -> bool:
    """Replace what stands between the two comments; False when the page has no such place."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    old = page.read_text(encoding="utf-8")
    before, found, rest = old.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        return False
    page.write_text(f"{before}{begin}\n{text.strip()}\n\n{end}{after}", encoding="utf-8")
    return True
