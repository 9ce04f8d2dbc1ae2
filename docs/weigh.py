"""Weighs the site, `python docs/weigh.py FOLDER`, and follows its links.

Fails on a request to another host, and on a link within the site that leads nowhere.

A page weighs what a browser loads with it: the document, and every script, style, picture and font
that it or its styles name.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADING_LINKS = {
    "stylesheet",
    "icon",
    "shortcut",
    "preload",
    "prefetch",
    "manifest",
    "apple-touch-icon",
}


class Assets(HTMLParser):
    """Collects what a page loads by itself, links that a reader follows excepted."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.inside = False
        self.styles = ""

    def handle_starttag(self, tag, attrs):
        """Notes src and srcset everywhere, and href where it loads."""
        given = {name: value or "" for name, value in attrs}
        self.inside = tag == "style"
        self.styles += given.get("style", "")
        self.found |= {given[name] for name in ("src", "poster") if given.get(name)}
        self.found |= {
            part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()
        }
        if tag == "object":
            self.found.add(given.get("data", ""))
        if tag == "link" and LOADING_LINKS & set(given.get("rel", "").split()):
            self.found.add(given.get("href", ""))

    def handle_endtag(self, tag):
        """Ends a style."""
        self.inside = False

    def handle_data(self, data):
        """Keeps the text of a style."""
        self.styles += data if self.inside else ""


class Links(HTMLParser):
    """Collects where the links of a page lead, and where links can lead in it."""

    def __init__(self) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = {"", "top"}

    def handle_starttag(self, tag, attrs):
        """Notes href, and id and name."""
        given = dict(attrs)
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}


def broken(folder: Path) -> list[str]:
    """'PAGE: LINK' for each link within the site to a file or an anchor that is not there."""
    pages = {}
    for file in sorted(folder.resolve().rglob("*.html")):
        pages[file] = Links()
        pages[file].feed(file.read_text("utf-8", errors="ignore"))
    found = []
    for file, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            if parts.scheme or parts.netloc:
                continue
            there = target in pages and unquote(parts.fragment) in pages[target].anchors
            if not (there or (target not in pages and target.is_file())):
                found.append(f"{file.relative_to(folder.resolve())}: {link}")
    return found


def in_styles(text: str) -> set[str]:
    """What a style sheet loads."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    named = re.findall(r"url\(\s*['\"]?([^'\")]+)", text)
    return set(named) | set(re.findall(r"@import\s+['\"]([^'\"]+)", text))


def assets(file: Path) -> tuple[set[Path], set[str]]:
    """(files that a page or style sheet loads, itself included; addresses on other hosts)."""
    text = file.read_text("utf-8", errors="ignore")
    if file.suffix == ".html":
        parser = Assets()
        parser.feed(text)
        named = parser.found | in_styles(parser.styles)
    else:
        named = in_styles(text) if file.suffix == ".css" else set()
    files, foreign = {file}, set()
    for name in named:
        parts = urlsplit(name)
        if parts.netloc:
            foreign.add(name)
        elif parts.path and parts.scheme != "data":
            target = (file.parent / unquote(parts.path)).resolve()
            if not target.is_file():
                raise FileNotFoundError(f"{file} loads {name}, which is not there")
            if target not in files:
                more, others = assets(target)
                files, foreign = files | more, foreign | others
    return files, foreign


def main(folder: Path) -> int:
    """Prints the weights; 1 if a page loads from another host or a link within leads nowhere."""
    weights, foreign = {}, {}
    for page in sorted(folder.resolve().rglob("*.html")):
        files, others = assets(page)
        weights[page] = sum(file.stat().st_size for file in files)
        if others:
            foreign[page] = others
    total = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    heaviest = max(weights, key=weights.__getitem__)
    print(f"{len(weights)} pages, {total / 1e6:.1f} MB in all")
    for page in (folder.resolve() / "index.html", heaviest):
        name, own = page.relative_to(folder.resolve()), page.stat().st_size
        print(f"{name}: {weights[page] / 1e3:.0f} kB with all it loads, {own / 1e3:.0f} kB itself")
    for page, names in foreign.items():
        print(f"{page.name} loads from elsewhere: {', '.join(sorted(names))}")
    nowhere = broken(folder)
    for link in nowhere:
        print(f"leads nowhere: {link}")
    return 1 if foreign or nowhere else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
