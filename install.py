"""Run by the WebUI at start-up. Installs nothing; says in one line what is missing, if anything is."""

from importlib.util import find_spec

missing = [name for name in ("torch", "gradio") if find_spec(name) is None]
if missing:
    print(f"LoRAtorio needs {', '.join(missing)}, which the WebUI normally brings: reinstall the WebUI's requirements.")
