"""docs/troubleshooting.md: each message that a user can read has a line there, and each line is of a message."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TELLING = {"note", "stop", "popup", "told", "Warning", "Info", "ArgumentTypeError"}
ERRORS = {"LoratorioError", "SettingsError", "LoraFileError", "DeltaError", "RowsError"}
WORDS = 6  # and more make a text of a module that tells something a message
MODULES = ("hosts/webui", "hosts/a1111", "hosts/forge", "loras", "engine", "deltas", "loratorio.py")
LABELS = "lib_loratorio/hosts/webui/options.py"  # of the settings page
HINTS = {f"javascript/loratorio.js:{name}" for name in ("ONE", "MORE", "PRICE", "POOL", "NAMED")}  # of no problem
NO_MESSAGES = {
    "Merge plans no step, so there is nothing to combine": "of faults in the code, which no user meets",
    "weights are ": "the same",
    "no weights have been added yet": "the same",
    ", and neither has the pool": "the end of another message",
    ": there LoRAs are merged.": "the end of another message",
    "on how the prompt is read": "a part of another message",
}


def parts_of(node):
    """A text's fixed parts; None for what is no text."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return [part.value for part in node.values if isinstance(part, ast.Constant)]
    return None


def texts(tree):
    """All texts but docstrings, each with the names that are called around it."""

    def walk(node, calls):
        parts = parts_of(node)
        if parts is not None:
            yield parts, node.lineno, calls
            return
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return
        if isinstance(node, ast.Call):
            calls = calls | {getattr(node.func, "id", getattr(node.func, "attr", ""))}
        for child in ast.iter_child_nodes(node):
            yield from walk(child, calls)

    return walk(tree, frozenset())


def messages():
    """`(place, fixed parts)` of what is told."""
    found = []
    for path in sorted([*(ROOT / "lib_loratorio").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]):
        place = path.relative_to(ROOT).as_posix()
        tells_more = place.partition("/")[2].startswith(MODULES) and place != LABELS
        for parts, line, calls in texts(ast.parse(path.read_text(encoding="utf-8"))):
            words = " ".join(parts).split()
            told = calls & (TELLING | ERRORS) and any(len(word) > 2 for word in words)
            if (told or (tells_more and len(words) >= WORDS)) and not NO_MESSAGES.keys() & set(parts):
                found.append((f"{place}:{line}", parts))
    return found


def messages_while_typing():
    """`(place, fixed parts)` of what the page's script tells."""
    script = (ROOT / "javascript/loratorio.js").read_text(encoding="utf-8")
    found = re.findall(r'const ([A-Z]+) = "(.*)";', script)
    return [(f"javascript/loratorio.js:{name}", re.split(r"\{\w+\}", text)) for name, text in found]


def entries():
    page = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    cells = [row.split(" | ")[0].removeprefix("| ") for row in page.splitlines() if row.startswith("| ")]
    return [cell for cell in cells if cell.strip() != "message"]


def is_told(entry, parts):
    """Whether a message has these parts of an entry, `…` standing for anything, in this order."""
    text, start = "\0".join(parts), 0
    for piece in entry.split("…"):
        found = text.find(piece.strip() if "…" in entry else piece, start)
        if found < 0:
            return False
        start = found + len(piece.strip())
    return True


def test_every_message_has_an_entry():
    known = entries()
    told = messages() + [(place, parts) for place, parts in messages_while_typing() if place not in HINTS]
    untold = [(place, "…".join(parts)) for place, parts in told if not any(is_told(e, parts) for e in known)]
    assert untold == []


def test_every_entry_is_a_message_of_the_code():
    told = [parts for _, parts in messages() + messages_while_typing()]
    assert len(told) > 150
    assert [entry for entry in entries() if not any(is_told(entry, parts) for parts in told)] == []
