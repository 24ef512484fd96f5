"""What the code can tell a user: the texts of its errors and notes, and of the page's script, read from its source."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("lib_loratorio", "scripts")
TELLING = {
    *("note", "stop", "leave_alone", "_refuse", "_refused", "popup", "Warning", "Info"),
    *("LoratorioError", "SettingsError", "DeltaError", "PartialDeltaError", "LoraFileError", "ArgumentTypeError"),
    *("RuntimeError", "told", "warning", "Other"),
}
"""Calls whose texts a user reads: functions, errors and tables of the extension, and functions of gradio."""

VALUE = "…"
"""Stands in a text for what is put in while it runs."""

NO_MESSAGES = (
    *("# Settings", "\\* has no such option", "can't allocate memory", "First Block Cache"),
    *("with the method merge", "on how the prompt is read", "the LoRA '…' has lbw=…"),
    *("the sampler's model: ", "the checkpoint's model call: "),
)
"""Beginnings of texts that are no messages, or say where or what within one that has an entry."""


HINTS = {"ONE", "MORE", "PRICE", "POOL", "NAMED", "OFF"}
"""The names of texts of the page's script that tell of no problem."""


def messages():
    """By text, a file that tells it. A text is a whole message, or a reason that is put into one."""
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    trees = {str(file.relative_to(ROOT)): ast.parse(file.read_text("utf-8")) for file in files}
    constants = {name: node for tree in trees.values() for name, node in _named_texts(tree).items() if name.isupper()}
    found = {}
    for file, tree in trees.items():
        for text in _texts(tree, {**constants, **_named_texts(tree)}):
            found.setdefault(text, file)
    return found | _while_typing()


def _while_typing():
    file = "javascript/loratorio.js"
    texts = re.findall(r'const ([A-Z]+) = "(.*)";', (ROOT / file).read_text("utf-8"))
    return {re.sub(r"\{\w+\}", VALUE, text): file for name, text in texts if name not in HINTS}


def _texts(tree, named):
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and _name(call.func) in TELLING:
            for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
                yield from (text for text in _parts(argument, named) if text == _text(argument) or _is_long(text))
        elif isinstance(call, ast.Return) and call.value is not None and not isinstance(call.value, ast.Call):
            yield from filter(_is_long, _parts(call.value, named))


def _is_long(text):
    """Whether a text that is put into others says something by itself."""
    return len(re.findall(r"[^\W\d_]+", text)) > 3 and not text.startswith(NO_MESSAGES)


def _name(function):
    return getattr(function, "attr", getattr(function, "id", ""))


def _named_texts(tree):
    """By name, the texts that are assigned to it anywhere in the file."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(node.value)
    return found


def _parts(node, named, depth=0):
    """The texts that an expression can be, or takes from names."""
    text = _text(node)
    if text is not None:
        if text.count(" ") > 1:
            yield text
        inner = [part.value for part in ast.walk(node) if isinstance(part, ast.FormattedValue)]
    else:
        inner = [part for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr)]
    if isinstance(node, ast.Name) and depth < 3:
        inner = named.get(node.id, [])
    for one in inner:
        yield from _parts(one, named, depth + 1)


def _text(node):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else VALUE for part in node.values)
    return None
