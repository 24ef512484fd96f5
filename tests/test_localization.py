"""The translation has every text of the accordion and the settings page, and no other."""

import json
import re
from pathlib import Path

import pytest
import standin

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("file", sorted((ROOT / "localizations").glob("*.json")), ids=lambda file: file.stem)
def test_every_text_is_translated(file):
    with standin.installed() as host:
        host.gradio.Button.made.clear()
        controls = host.script.ui(False)
        texts = {control.kwargs.get(key) for control in controls for key in ("label", "info")} - {None, "LoRAtorio"}
        texts |= {button.value for button in host.gradio.Button.made} | {host.picker.PICK, host.picker.STRENGTH}
        texts |= {info.label for info in host.shared.opts.data_labels.values()} - {"LoRAtorio"}
        page = host.extension.accordion
        texts |= {page.HELP, page.MODE, page.MODE_HELP, *page.PRESETS, page.CUSTOM, *page.GROUPS}
        texts |= {host.extension.options.AS_GRIDS}
    texts |= set(
        text
        for script in (ROOT / "javascript").glob("*.js")
        for text in re.findall(r'const [A-Z]+ = "(.*)";', script.read_text(encoding="utf-8"))
    )
    translation = json.loads(file.read_text(encoding="utf-8"))
    assert set(translation) == texts
    assert all(translation[text] and translation[text] != text for text in texts)
