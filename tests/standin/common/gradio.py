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
        self.events["click"] = function, inputs, outputs

    def change(self, function, inputs, outputs, show_progress=True):
        self.events["change"] = function, inputs, outputs

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        return None


def update(**changes):
    return changes


class Button(Component):
    made: ClassVar[list] = []

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.made.append(self)


class HTML(Component):
    pass


class Column(Component):
    pass


class Row(Component):
    pass


class Dropdown(Component):
    pass


class Radio(Component):
    pass


class Slider(Component):
    pass


class Checkbox(Component):
    pass


class Number(Component):
    pass


class Textbox(Component):
    pass
