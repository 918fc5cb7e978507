"""What a page is made of, for tests that nothing of the data becomes markup."""

from html.parser import HTMLParser

HOSTILE = 'k"><img src=x onerror=document.title=1>'


def elements(page: str) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """Returns the elements of a page with their attributes."""
    found = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            found.append((tag, attributes))

    parser = Parser()
    parser.feed(page)
    parser.close()
    return found
