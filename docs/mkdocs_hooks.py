"""Makes a site of the pages as they lie in the repository: mkdocs calls these functions.

The pages link to each other, and to other files of the repository, as GitHub shows them. On the site the
pages from the top of the repository stand beside those in docs/. A link to any other file leads to GitHub.
"""

import pathlib
import re
from typing import Any

from mkdocs.structure.files import File

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
TOP = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
PAGES = {ROOT / name: page for name, page in TOP.items()} | {path: path.name for path in HERE.glob("*.md")}


def on_files(files: Any, config: Any) -> Any:
    """Take in the pages from the top of the repository."""
    for name, page in TOP.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links between files into links between pages, or to GitHub.

    A link that leads nowhere stays as it is, for mkdocs to report.
    """
    folder = pathlib.Path(page.file.abs_src_path).parent

    def on_the_site(link: re.Match[str]) -> str:
        target = (folder / link["path"]).resolve()
        if target in PAGES:
            return PAGES[target]
        return f"{config.repo_url}/blob/main/{target.relative_to(ROOT)}" if target.exists() else link["path"]

    return re.sub(r"(?<=\]\()(?P<path>(?!\w+:)[^)#\s]+)", on_the_site, markdown)
