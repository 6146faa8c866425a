"""A hook of mkdocs: pages name each other as files, docs/recipes.md; on the site that is a link."""

import re
from typing import Any

NAMED = re.compile(r"(?<![\w/(\[`])docs/([\w-]+\.md)\b")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page, with links in its prose; what is code stays as it is."""
    lines: list[str] = []
    is_code = False
    for line in markdown.splitlines():
        is_code ^= line.lstrip().startswith("```")
        lines.append(line if is_code else NAMED.sub(r"[docs/\1](\1)", line))
    return "\n".join(lines)
