"""Pages as a browser takes them apart: what they would load, jump to and show."""

import html.parser


class Page(html.parser.HTMLParser):
    """The tags of a page, its text without styles and scripts, and what was not closed."""

    VOID = frozenset({"meta", "link", "img", "br", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.script = ""
        self.paths: list[tuple[str, ...]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        self.paths.append(tuple(self.open))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.script += data
        elif self.open[-1:] != ["style"] and "svg" not in self.open:
            self.text += data

    def attributes(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of each element of a name."""
        return [attributes for name, attributes in self.tags if name == tag]

    def identifiers(self) -> list[str]:
        """Return every name that a link may lead to."""
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    def verdicts(self) -> list[tuple[str, dict[str, str]]]:
        """Return each verdict in a table or above images, with the element that it is: links, or text."""
        return [
            (tag, attributes)
            for (tag, attributes), path in zip(self.tags, self.paths, strict=True)
            if "verdict" in attributes.get("class", "").split() and ({"tbody", "article"} & {*path} or "header" in path)
        ]

    def tables(self) -> list[tuple[int, bool]]:
        """Return for each table how many rows its bodies have, and whether a filter stands above it."""
        found: list[list[int]] = []
        has_filter = False
        for (tag, attributes), path in zip(self.tags, self.paths, strict=True):
            if attributes.get("class") == "filter":
                assert "hidden" in attributes, "without a script there is nothing that filters"
                has_filter = True
            elif tag == "table":
                found.append([0, has_filter])
                has_filter = False
            elif tag == "tr" and path[-1] == "tbody":
                found[-1][0] += 1
        return [(rows, bool(filtered)) for rows, filtered in found]
