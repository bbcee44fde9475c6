import re
from html.parser import HTMLParser

from tureen.interface.html_table import bar_table


class Elements(HTMLParser):
    """Collects the names of the elements and the text of an HTML text."""

    def __init__(self, html):
        super().__init__()
        self.names, self.text = set(), []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)

    def handle_data(self, data):
        self.text.append(data)


def test_the_bars_are_as_long_as_their_shares():
    html = bar_table("c", ("a", "share"), [(("x",), 1.0), (("y",), 0.25), (("z",), None)])
    assert re.findall(r"width:([\d.]+)em", html) == ["8.00", "2.00"]
    assert "100.0%" in html
    assert "25.0%" in html


def test_every_text_is_escaped_and_nothing_is_loaded():
    wrong = '<script src="http://example.com/x.js"></script>&"\''
    html = bar_table(wrong, (wrong,), [((wrong,), 0.5)])
    found = Elements(html)
    assert found.names == {"table", "caption", "tr", "th", "td", "span"}
    assert "".join(found.text).count(wrong) == 3
    assert not re.search(r"<[^>]*(?:src|href|url\()", html)
