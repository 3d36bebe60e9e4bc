"""Adapts the guides, which are also read in the repository, for `mkdocs`."""

import re

# Links to files of the repository that are not pages.
_LINK_OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\(\.\./([^)]+)\)", re.DOTALL)


def on_page_markdown(markdown: str, page, **unused) -> str:
  """Names files beside docs/ instead of linking to them."""
  if page.file.src_uri.startswith("api/"):
    return markdown
  return _LINK_OUTSIDE.sub(_named, markdown)


def _named(found: re.Match) -> str:
  is_picture, text, path = found.groups()
  return (
    f"{'Figure: ' if is_picture else ''}{text} (`{path}` in the repository)"
  )
