"""The site is built without a warning, is complete, and asks nobody for anything."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import doc_floors
import doc_regions
import griffe
import pytest
from doc_site import build_site, modules_of_pages, public_names, shown_names

from llamatelemetry.server import ServerConfig

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"

# Each module that a reader imports from.
PUBLIC_MODULES = {
    "llamatelemetry",
    "llamatelemetry.api.client",
    "llamatelemetry.api.gguf",
    "llamatelemetry.api.multigpu",
    "llamatelemetry.api.nccl",
    "llamatelemetry.diagnosis",
    "llamatelemetry.exceptions",
    "llamatelemetry.gguf",
    "llamatelemetry.gpu",
    "llamatelemetry.placement",
    "llamatelemetry.plots",
    "llamatelemetry.pool",
    "llamatelemetry.server",
    "llamatelemetry.session",
    "llamatelemetry.setup",
    "llamatelemetry.widgets",
}


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    build_site(folder)
    return folder


@pytest.mark.slow
def test_the_site_has_every_page(site: Path) -> None:
    """Every document is a page, each notebook a file, and no warning was given."""
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS)).with_suffix(".html").exists(), page
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert (site / "notebooks" / notebook.name).exists(), notebook


@pytest.mark.slow
def test_the_api_is_complete(site: Path) -> None:
    """Each public module has a page, which shows every name that it offers."""
    pages = modules_of_pages()
    shown = shown_names(site)

    assert {name for name in pages if name in PUBLIC_MODULES} == PUBLIC_MODULES
    missing = [
        name
        for module in PUBLIC_MODULES
        for name in public_names(module)
        if name not in shown
    ]
    assert missing == []


@pytest.mark.slow
def test_methods_are_shown(site: Path) -> None:
    """Public methods are on a page, and ServerConfig's fields; nothing private is."""
    shown = shown_names(site)
    text = (site / "api" / "server.html").read_text(encoding="utf-8")

    assert "llamatelemetry.server.ServerManager.wait_until_ready" in shown
    assert "llamatelemetry.api.client.LlamaCppClient.chat_completion" in shown
    last = {name.rpartition(".")[2] for name in shown}
    assert not [name for name in last if re.match(r"_[^_]", name)]
    for item in dataclasses.fields(ServerConfig):
        assert f"<code>{item.name}</code>" in text or f">{item.name}<" in text


@pytest.mark.slow
def test_no_markup_is_left_over(site: Path) -> None:
    """No role of another tool's, and no reference without a target, is shown."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r":(meth|class|func|mod|attr|exc):", text), page
        assert "autoref>" not in text, page
    tree = (site / "api" / "exceptions.html").read_text(encoding="utf-8")
    assert re.search(r"<code>LLCudaError\n├─ ConfigurationError", tree)
    assert "<summary>Example</summary>" not in tree


def described(where: griffe.Object) -> Iterator[tuple[griffe.Object, set[str]]]:
    """Yield each object below, with the parameters that its docstring names."""
    for member in where.members.values():
        if member.is_alias:
            continue
        if member.docstring is not None:
            sections = member.docstring.parse("google", warnings=False)
            kind = griffe.DocstringSectionKind.parameters
            named = {
                one.name.lstrip("*")
                for section in sections
                if section.kind is kind
                for one in section.value
            }
            yield member, named
        yield from described(member)


def test_described_parameters_exist() -> None:
    """Each parameter that a docstring describes is one of the function or the class."""
    package = griffe.load("llamatelemetry", search_paths=[ROOT])
    seen = 0
    for one, named in described(package):
        own = [item.name for item in getattr(one, "parameters", ())]
        inherits = one.is_class and "__init__" not in one.members and not own
        unknown = named - {name.lstrip("*") for name in own} - {"self"}
        dataclass = one.is_class and "dataclass" in one.labels
        if not inherits or dataclass:
            assert not unknown, f"{one.path}: {sorted(unknown)}"
        seen += len(named)
    assert seen > 500


class Links(HTMLParser):
    """Collects what a page makes a browser fetch, and where it leads."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one tag's addresses."""
        values = dict(attrs)
        fetched = values.get("src") or (values.get("href") if tag == "link" else None)
        if fetched:
            self.fetched.append(fetched)


@pytest.mark.slow
def test_a_page_asks_nobody(site: Path) -> None:
    """No page has a script, style, font or picture from elsewhere."""
    pages = list(site.rglob("*.html"))
    for page in pages:
        links = Links()
        links.feed(page.read_text(encoding="utf-8"))
        elsewhere = [one for one in links.fetched if re.match(r"(https?:)?//", one)]
        assert elsewhere == [], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text()), style
    assert len(pages) > 20


def test_written_parts_are_fresh() -> None:
    """Tables, lists and the picture that a program writes are as it writes them now."""
    stale = [str(path.relative_to(ROOT)) for path in doc_regions.stale()]

    assert stale == [], "run: python tests/tools/doc_regions.py"


def test_every_field_has_its_advice() -> None:
    """CONFIGURATION.md says of each field of ServerConfig when to change it."""
    text = (DOCS / "CONFIGURATION.md").read_text(encoding="utf-8")
    advice = text.partition("## When to change what")[2]
    said = re.findall(r"^- \*\*(.+?)\*\*:", advice, re.MULTILINE)
    named = re.findall(r"`(\w+)`", " ".join(said))

    assert sorted(named) == sorted(
        item.name for item in dataclasses.fields(ServerConfig)
    )


def test_the_picture_has_every_module() -> None:
    """The picture of the floors counts each module, and is well-formed."""
    drawn = ET.fromstring(doc_floors.picture())
    texts = [one.text or "" for one in drawn.iter("{http://www.w3.org/2000/svg}text")]
    counted = [
        int(one.split()[0]) for one in texts if re.fullmatch(r"\d+ modules", one)
    ]

    assert sum(counted) == len(doc_floors.floors())
    assert [one for one in texts if one.isdigit()] == list("76543210")


@pytest.mark.slow
def test_a_broken_link_is_an_error(tmp_path: Path) -> None:
    """A link to no page or heading, or a page left out of the list, fails the build."""
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    settings = settings.partition("\nplugins:")[0].partition("\nnav:")[0]
    settings = settings.replace("\n  - tests/", f"\n  - {ROOT}/tests/")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "site.css").touch()
    page = tmp_path / "docs" / "index.md"
    configuration = tmp_path / "mkdocs.yml"
    configuration.write_text(settings)
    page.write_text("# A page\n\n[itself](index.md#a-page)\n")
    build_site(tmp_path / "site", configuration)
    for broken in ("[no page](none.md)", "[no heading](index.md#none)"):
        page.write_text(f"# A page\n\n{broken}\n")
        with pytest.raises(AssertionError, match="WARNING"):
            build_site(tmp_path / "site", configuration)
    page.write_text("# A page\n")
    shutil.copy(page, tmp_path / "docs" / "other.md")
    configuration.write_text(settings + "\nnav:\n  - index.md\n")
    with pytest.raises(AssertionError, match="not included"):
        build_site(tmp_path / "site", configuration)
