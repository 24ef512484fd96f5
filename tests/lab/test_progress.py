"""One line that is rewritten on a terminal, and few plain ones elsewhere."""

from io import StringIO

from lab.progress import Progress


class Terminal(StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_one_line_that_is_rewritten(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    Progress(0, stream).tell(0, "starting")
    progress = Progress(4, stream)
    progress.tell(1, "a caption that is by far too long for the line")
    progress.tell(4, "ready")
    progress.clear()
    assert "\n" not in stream.getvalue()
    start, first, second, last = stream.getvalue().split("\r\x1b[K")[1:]
    assert start == "starting"
    assert first.startswith("[#####...............] 1/4  a caption") and len(first) == 39
    assert second == "[####################] 4/4  ready" and last == ""


def test_elsewhere_it_is_a_line_for_each_quarter():
    stream = StringIO()
    progress = Progress(40, stream)
    for done in range(41):
        progress.tell(done, "a caption")
    progress.clear()
    assert stream.getvalue() == "10 of 40\n20 of 40\n30 of 40\n40 of 40\n"
