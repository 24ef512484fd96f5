"""The few components of gradio that an accordion is made of; they record what they were made with."""

from typing import ClassVar

warnings: list[str] = []


class Warning:
    """What a page shows as a toast."""

    def __init__(self, message):
        warnings.append(message)


class Component:
    def __init__(self, *args, **kwargs):
        self.args, self.kwargs = args, kwargs
        self.value = kwargs.get("value", args[0] if args else None)

        self.events = {}

    def click(self, function, inputs, outputs, show_progress=True):
        self._listen("click", function, inputs, outputs)

    def change(self, function, inputs, outputs, show_progress=True):
        self._listen("change", function, inputs, outputs)

    def input(self, function, inputs, outputs, show_progress=True):
        self._listen("input", function, inputs, outputs)

    def _listen(self, event, *listener):
        self.events.setdefault(event, []).append(listener)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None


def update(**changes):
    return changes


class Listed(Component):
    """With a list of all that were made."""

    made: ClassVar[list] = []

    def __init_subclass__(cls):
        cls.made = []

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.made.append(self)


class Button(Listed):
    pass


class HTML(Component):
    pass


class Column(Component):
    pass


class Row(Component):
    pass


class Dropdown(Component):
    pass


class Radio(Listed):
    pass


class Accordion(Listed):
    pass


class Slider(Component):
    pass


class Checkbox(Component):
    pass


class Number(Component):
    pass


class Textbox(Component):
    pass
