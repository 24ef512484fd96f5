"""How the lab's modules depend on each other and on the extension, read from their sources."""

import ast
from pathlib import Path

import lab

FOLDER = Path(lab.__file__).parent
MODULES = {
    ".".join(("lab", *file.relative_to(FOLDER).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in sorted(FOLDER.rglob("*.py"))
}
EVALUATION = (
    "captions",
    "boxes",
    "ways",
    "patches",
    "divergence",
    "measurements",
    "couple",
    "studio",
    "choices",
    "tables",
    "plots",
    "report",
    "places_report",
    "price_report",
    "pools_report",
)
"""Each module needs only those before it."""

PUBLIC = {"lib_loratorio.settings", "lib_loratorio.hosts.diffusers", "lib_loratorio.composition"}
BESIDES = {
    ("lab.evaluation.ways", "lib_loratorio.loras.tag"),
    ("lab.evaluation.ways", "lib_loratorio.engine.price"),
    ("lab.swapped", "lib_loratorio.loras.tag"),
    ("lab.contact_sheet", "lib_loratorio.page.weight_panel"),
    ("lab.contact_sheet", "lib_loratorio.palette"),
    ("lab.demo_page", "lib_loratorio.palette"),
    ("lab.demo_plan", "lib_loratorio.presets"),
}
"""What else of the extension a module needs: what a LoRA's tag says, the engine's plans, the presets, the colours of
its maps.
"""


def _imports(file):
    """(module, name) of every import in a file, wherever it stands; the name is None for a whole module."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def _needs(module):
    """The lab's modules that one imports."""
    names = {
        f"{source}.{name}" if f"{source}.{name}" in MODULES else source for source, name in _imports(MODULES[module])
    }
    return names & MODULES.keys() - {module}


def test_imports_of_the_evaluation_point_one_way():
    for number, name in enumerate(EVALUATION):
        above = {f"lab.evaluation.{other}" for other in EVALUATION[:number]}
        assert {need for need in _needs(f"lab.evaluation.{name}") if need.startswith("lab.evaluation")} <= above, name
    assert {name for name in MODULES if name.startswith("lab.evaluation.")} == {
        f"lab.evaluation.{n}" for n in EVALUATION
    }


def test_no_import_circle_in_the_lab():
    waiting = {module: _needs(module) for module in MODULES}
    while waiting:
        free = {module for module, needs in waiting.items() if not needs & waiting.keys()}
        assert free, f"these import each other: {sorted(waiting)}"
        for module in free:
            del waiting[module]


def test_of_the_extension_the_lab_needs_what_is_public():
    needed = {
        (module, source)
        for module, file in MODULES.items()
        for source, _ in _imports(file)
        if source and source.startswith("lib_loratorio") and source not in PUBLIC
    }
    assert needed == BESIDES


def _functions(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node


def test_every_function_has_type_hints():
    for file in (*FOLDER.rglob("*.py"), *(FOLDER.parent / "benchmarks").glob("*.py")):
        for function in _functions(file):
            arguments = function.args
            given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
            bare = [a.arg for a in given if a and not a.annotation and a.arg not in ("self", "cls")]
            where = f"{file.name}:{function.lineno} {function.name}"
            assert not bare, f"{where}: {bare}"
            assert function.returns or function.name == "__init__", where
