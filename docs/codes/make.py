"""Write the pages of this folder from ``bnfold.refusals.CODES``: ``python docs/codes/make.py``."""

from __future__ import annotations

from pathlib import Path

from bnfold.refusals import CODES

HEAD = """# Why an operator stays

bnfold folds what it can prove and names the reason for the rest. Every reason has a code: `bnfold fold` and
`bnfold inspect` print it with a sentence about the very node, JSON reports hold it as `code`, and
`bnfold explain CODE` shows the page on the command line.

| code | meaning |
|---|---|
"""


def pages() -> dict[str, str]:
    """File names and texts."""
    index = HEAD + "".join(f"| [`{code}`]({code}.md) | {entry.meaning} |\n" for code, entry in CODES.items())
    found = {"README.md": index}
    for code, entry in CODES.items():
        parts = (
            f"# `{code}`",
            entry.meaning,
            f"**Why this stops a fold.** {entry.why}",
            f"**What you can do.** {entry.advice}",
            "[All codes](README.md)",
        )
        found[f"{code}.md"] = "\n\n".join(parts) + "\n"
    return found


if __name__ == "__main__":
    folder = Path(__file__).parent
    texts = pages()
    for old in folder.glob("*.md"):
        if old.name not in texts:
            old.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
