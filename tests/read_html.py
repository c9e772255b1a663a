"""HTML read back, for the tests of pages: elements in their order with their text, and what is wrong with them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import pairwise

VOID = frozenset({"meta", "link", "input", "path", "rect", "circle", "br"})


@dataclass
class Element:
    """An element, the text of it and below it, and what it stands in."""

    tag: str
    attributes: dict[str, str | None]
    parent: "Element | None" = None
    text: str = ""

    def inside(self, *tags: str) -> bool:
        """Whether it stands in an element of one of these."""
        return self.parent is not None and (self.parent.tag in tags or self.parent.inside(*tags))


@dataclass
class Page(HTMLParser):
    """A page's elements, in order."""

    html: str
    elements: list[Element] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[Element] = []
        self.feed(self.html)
        self.close()
        assert not self._open, f"never closed: {[each.tag for each in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {attrs}"
        element = Element(tag, dict(attrs), self._open[-1] if self._open else None)
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """See HTMLParser."""
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        """See HTMLParser."""
        if tag not in VOID:
            assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
            self._open.pop()

    def handle_data(self, data: str) -> None:
        """See HTMLParser."""
        for element in self._open:
            element.text += data

    def all(self, *tags: str) -> Iterator[Element]:
        """The elements of these tags."""
        return (each for each in self.elements if each.tag in tags)

    def one(self, tag: str) -> Element:
        """The only element of that tag."""
        (found,) = self.all(tag)
        return found

    @property
    def text(self) -> str:
        """All text, with single spaces."""
        return " ".join(self.one("html").text.split())

    def links(self) -> list[str]:
        """Where its links lead."""
        return [str(each.attributes["href"]) for each in self.all("a")]


def faults(page: Page) -> list[str]:
    """What keeps somebody from reading the page with ears, or a strict browser from showing it."""
    return [*_structure(page), *_names(page), *_markup(page)]


def _structure(page: Page) -> Iterator[str]:
    for tag in ("html", "head", "title", "body", "main", "header", "h1"):
        if (count := len([*page.all(tag)])) != 1 and not (tag == "header" and count):
            yield f"{count} of {tag}"
    levels = [int(each.tag[1]) for each in page.all("h1", "h2", "h3", "h4")]
    yield from (f"heading {later} after {earlier}" for earlier, later in pairwise(levels) if later > earlier + 1)
    ids = [each.attributes["id"] for each in page.elements if "id" in each.attributes]
    yield from (f"id {each} twice" for each in set(ids) if ids.count(each) > 1)
    for each in page.elements:
        for name in ("aria-labelledby", "for"):
            if name in each.attributes and each.attributes[name] not in ids:
                yield f"{name} of nothing: {each.attributes[name]}"
    if not page.one("html").attributes.get("lang"):
        yield "no language"


def _names(page: Page) -> Iterator[str]:
    """What has no name for those who do not see it."""
    captions = {id(each.parent) for each in page.all("caption") if each.text.strip()}
    yield from ("a table without caption" for each in page.all("table") if id(each) not in captions)
    for each in page.all("svg"):
        hidden = each.attributes.get("aria-hidden") == "true"
        if not hidden and not (each.attributes.get("role") == "img" and each.attributes.get("aria-label")):
            yield "a drawing without a text"
    for each in page.all("a", "button", "summary", "th"):
        if not (each.text.strip() or each.attributes.get("aria-label")):
            yield f"a {each.tag} without a name"
    yield from ("a field without label" for each in page.all("input", "select") if not each.inside("label"))
    yield from ("a heading cell without scope" for each in page.all("th") if each.attributes.get("scope") is None)
    for each in page.all("section", "nav", "article"):
        if each.tag != "article" and not {"aria-label", "aria-labelledby"} & each.attributes.keys():
            yield f"a {each.tag} without a name"


def _markup(page: Page) -> Iterator[str]:
    """What the policy of the page forbids."""
    for each in page.elements:
        if each.tag in ("style", "iframe", "object", "embed", "base", "img"):
            yield f"a {each.tag}"
        if each.tag == "script" and (not each.attributes.get("src") or each.text):
            yield "a script in the page"
        yield from (f"attribute {name}" for name in each.attributes if name == "style" or name.startswith("on"))
        for name in ("href", "src", "action"):
            if (each.attributes.get(name) or "").lower().startswith(("javascript:", "data:", "//", "http:", "/")):
                yield f"{name} {each.attributes[name]}"
