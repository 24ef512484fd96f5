"""The line of settings in a picture."""

from lib_loratorio.page.infotext import infotext


def test_infotext_quotes_what_would_end_a_field():
    text = infotext("a cat", "", {"Steps": 3, "Model": 'a, "b"', "Schedule type": ""})
    assert text == 'a cat\nSteps: 3, Model: "a, \\"b\\""'
