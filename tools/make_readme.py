"Make README.md from nbs/index.ipynb; with --check, only say whether it is up to date."

import sys
from pathlib import Path

from notebook_markdown import render_notebook

ROOT = Path(__file__).parent.parent
INDEX, README = ROOT / "nbs" / "index.ipynb", ROOT / "README.md"
NOTE = "<!-- Made from nbs/index.ipynb by `make readme`: change that, not this. -->\n\n"


def render_readme() -> str:
    "Render the index notebook as Markdown."
    body, _ = render_notebook(INDEX)
    for folder in ("images", "pages", "tutorials", "explore"):
        body = body.replace(f"]({folder}/", f"](nbs/{folder}/")
    return NOTE + body.replace("](../", "](")


def main() -> None:
    "Write the README, or check it."
    readme = render_readme()
    if "--check" not in sys.argv[1:]:
        README.write_text(readme, encoding="utf-8")
    elif README.read_text(encoding="utf-8") != readme:
        sys.exit("README.md is not what nbs/index.ipynb says: run `make readme`")


if __name__ == "__main__":
    main()
