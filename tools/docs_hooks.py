"""What `mkdocs build` adds to the pages of `docs/`: the notebooks, and every exported name as `show_doc` shows it.

Nothing is run and nothing is written outside of the site. A page of a module is its notebook: the prose and the
examples stay, and a cell that is exported becomes the documentation of its names.
"""

import ast
import importlib
import inspect
import io
import re
import textwrap
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import nbformat
import typer
from diagrams import replace_diagrams
from fastcore.docments import docments
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbdev.showdoc import BasicMarkdownRenderer, show_doc
from notebook_markdown import render_notebook

ROOT = Path(__file__).parent.parent
NOTEBOOKS = ROOT / "nbs"
WINGS = ("papers", "encoders", "runs", "explore", "spark", "cli", "files")  # the order in which they are read
TUTORIALS = ("welcome", "your_own_papers", "specter2_similarity", "explore", "distilbert_on_spark", "on_a_cluster")
# Types are shown by their last name: `Path` for `pathlib.Path`.
MODULE_OF_TYPE = re.compile(r"\b(?:[a-z_]\w*\.)+(?=[A-Za-z_])")
NO_VALUE = inspect.Parameter.empty


def show_type(annotation: Any) -> str:
    "Return a type as code for a table, by its last name; nothing for a parameter without one."
    if annotation is NO_VALUE:
        return ""
    if get_origin(annotation) is Annotated:  # an option of the command line
        annotation = get_args(annotation)[0]
    name = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    return f"`{MODULE_OF_TYPE.sub('', name)}`"


def escape_bars(text: str) -> str:
    "Escape the bars of a text for a table, but not those inside of code."
    return "`".join(part if i % 2 else part.replace("|", "\\|") for i, part in enumerate(text.split("`")))


class TableRenderer(BasicMarkdownRenderer):
    "`show_doc` with a table of parameters, which wraps in a page as its block of code does not."

    def _repr_markdown_(self) -> str:
        title = f"{'#' * self.title_level} {self.nm} {{ #{self.nm} }}"
        return "\n\n".join(filter(None, [title, self.show_call(), self.docs, self.show_table()]))

    def show_call(self) -> str:
        "Show how it is called: the names of its parameters; nothing for exceptions, whose parameters are Python's."
        try:
            parameters = inspect.signature(self.sym).parameters
        except ValueError:
            return ""
        stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
        names = [stars.get(one.kind, "") + name for name, one in parameters.items() if name not in ("self", "cls")]
        call = textwrap.fill(f"{self.nm}({', '.join(names)})", 78, subsequent_indent="    ")
        return f"```python\n{call}\n```"

    def show_table(self) -> str:
        "Show every parameter and the return with type, default and meaning."
        rows = []
        for name, found in docments(self.sym, full=True, returns=True).items():
            meaning = escape_bars((found.docment or "").replace("\n", " "))
            if name == "return":
                if found.docment or found.anno not in (NO_VALUE, None):
                    rows.append(f"| **returns** | {show_type(found.anno)} | | {meaning} |")
            elif name not in ("self", "cls"):
                default = "" if found.default is NO_VALUE else f"`{found.default!r}`"
                rows.append(f"| `{name}` | {show_type(found.anno)} | {default} | {meaning} |")
        return "\n".join(["| | type | default | |", "| --- | --- | --- | --- |", *rows]) if rows else ""


def document_function(name: str, value: Any, level: int = 3) -> str:
    "Show a function or class by nbdev's `show_doc`, under a heading with its name as the anchor."
    return show_doc(value, renderer=TableRenderer, title_level=level, name=name)._repr_markdown_()


def document_class(name: str, value: type) -> str:
    "Show a class, and then its public methods."
    shown = [document_function(name, value)]
    for method_name, found in vars(value).items():
        method = getattr(found, "__func__", found)  # of a class method
        if inspect.isfunction(method) and not method_name.startswith("_"):
            shown.append(document_function(f"{name}.{method_name}", method, level=4))
    return "\n\n".join(shown)


def find_definitions(source: str) -> Iterator[tuple[str, str]]:
    "Yield each name that an exported cell defines, and the lines that define it with the comment above them."
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]
        else:
            continue
        first = node.lineno - 1
        while first and lines[first - 1].startswith("#"):
            first -= 1
        yield from ((name, "\n".join(lines[first : node.end_lineno])) for name in names)


def document_cell(source: str, module: Any) -> str:
    "Document the public names that an exported cell defines; constants are shown as they are written."
    shown = []
    for name, definition in find_definitions(source):
        if name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) and value.__module__ == module.__name__:
                shown.append(document_class(name, value))
            elif inspect.isfunction(value):
                shown.append(document_function(name, value))
            else:
                shown.append(f"### {name} {{ #{name} }}\n\n```python\n{definition}\n```")
    return "\n\n".join(shown)


def link_pages(body: str, folder: str) -> str:
    "Let links to notebooks, and to their folders, lead to their pages in the site."

    def to_page(found: re.Match) -> str:
        there, stem = found["folder"] or folder, found["stem"]
        if there in WINGS:
            return f"]({up}api/{there}.{stem[3:]}.md"
        return f"]({up}{there}/{stem}.md"

    up = "../" if folder else ""
    body = re.sub(r"\]\((?:\.\./)+nbs/(\w+)/\)", rf"]({up}api/\1/index.md)", body)
    body = body.replace("](../../docs/", f"]({up}")
    return re.sub(r"\]\((?:\.\./)*(?:nbs/)?(?:(?P<folder>\w+)/)?(?P<stem>\w+)\.ipynb", to_page, body)


def place_pictures(body: str, pictures: dict[str, bytes], folder: str, stem: str, config: MkDocsConfig) -> list[File]:
    "Return a page and its pictures as files of the site, with links that fit it."
    page = File.generated(config, f"{folder}/{stem}.md", content=replace_diagrams(link_pages(body, folder)))
    return [page, *(File.generated(config, f"{folder}/{name}", content=data) for name, data in pictures.items())]


def make_module_page(path: Path, config: MkDocsConfig) -> list[File]:
    "Make the page of a module: its notebook with the documentation of its exported names."
    wing, stem = path.parent.name, path.stem[3:]
    module = importlib.import_module(f"arxiv_embeddings.{wing}.{stem}")
    body, pictures = render_notebook(path, document=lambda source: document_cell(source, module))
    title, _, rest = body.partition("\n")
    body = f"{title}\n\nModule `{module.__name__}`\n{rest}"
    return place_pictures(body, pictures, "api", f"{wing}.{stem}", config)


def make_wing_page(wing: str, paths: list[Path], config: MkDocsConfig) -> File:
    "Make the page of a wing: its modules and what each is for."
    rows = [f"# {wing}", "", "| module | what it is for |", "| --- | --- |"]
    for path in paths:
        first = nbformat.read(path, as_version=4).cells[0].source
        title = first.splitlines()[0].removeprefix("# ")
        purpose = re.search(r"^> ((?:.+\n?)+?)(?=\n|\Z)", first, re.MULTILINE)
        rows.append(
            f"| [`{path.stem[3:]}`](../{wing}.{path.stem[3:]}.md) | {title}. {purpose.group(1).strip() if purpose else ''} |"
        )
    return File.generated(config, f"api/{wing}/index.md", content="\n".join(rows) + "\n")


def make_command_page(config: MkDocsConfig) -> File:
    "Make the page of the command line: the help of every command, as `--help` prints it."
    from arxiv_embeddings.cli.main import app

    lines = ["# Command line", "", "The help of every command, as `--help` prints it."]

    def show(command: Any, words: str, context: Any) -> None:
        here = typer.Context(command, info_name=words.split()[-1], parent=context, terminal_width=78)
        printed = io.StringIO()
        with redirect_stdout(printed):
            text = command.get_help(here) or printed.getvalue()
        lines.extend(["", f"## {words}", "", "```text", text.strip("\n"), "```"])
        for name, inner in getattr(command, "commands", {}).items():
            show(inner, f"{words} {name}", here)

    show(typer.main.get_command(app), "arxiv-embeddings", None)
    return File.generated(config, "command_line.md", content="\n".join(lines) + "\n")


def list_tutorials() -> list[Path]:
    "List the tutorials in the order in which they are read; new ones come last."
    place = {stem: number for number, stem in enumerate(TUTORIALS)}
    return sorted((NOTEBOOKS / "tutorials").glob("*.ipynb"), key=lambda path: (place.get(path.stem, 99), path.stem))


def list_modules(wing: str) -> list[Path]:
    "List the notebooks of a wing in the order of their numbers."
    return sorted((NOTEBOOKS / wing).glob("[0-9][0-9]_*.ipynb"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    "Put the tutorials and the modules into the navigation."
    tutorials = [f"tutorials/{path.stem}.md" for path in list_tutorials()]
    modules = [
        {
            wing: [
                f"api/{wing}/index.md",
                *({path.stem[3:]: f"api/{wing}.{path.stem[3:]}.md"} for path in list_modules(wing)),
            ]
        }
        for wing in WINGS
    ]
    for section in config.nav:
        if "Tutorials" in section:
            section["Tutorials"] = tutorials
        if "API" in section:
            section["API"] = [*section["API"], *modules]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    "Add the notebooks and their pictures, the modules, and the command line."
    made = [make_command_page(config)]
    for path in [*list_tutorials(), *sorted((NOTEBOOKS / "pages").glob("*.ipynb"))]:
        body, pictures = render_notebook(path)
        made.extend(place_pictures(body, pictures, path.parent.name, path.stem, config))
    for picture in (NOTEBOOKS / "images").iterdir():
        made.append(File(f"images/{picture.name}", str(NOTEBOOKS), config.site_dir, config.use_directory_urls))
    for wing in WINGS:
        made.append(make_wing_page(wing, list_modules(wing), config))
        for path in list_modules(wing):
            made.extend(make_module_page(path, config))
    for file in made:
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    "Let the pages of `docs/`, whose links fit the repository, link to pages of the site."
    return link_pages(markdown, Path(page.file.src_uri).parent.name)
