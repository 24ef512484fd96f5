"""Options of the end-to-end tests, which need a WebUI that is already running."""

import torch

torch.set_num_threads(1)  # tensors as small as the tests' only wait for each other's threads


def pytest_addoption(parser):
    parser.addoption("--webui-url", default=None, help="address of a running WebUI, such as http://127.0.0.1:7860")
    parser.addoption(
        "--screenshots", default=None, help="folder for pictures of the WebUI's page, as the README has them"
    )
    parser.addoption("--webui-dir", default=None, help="that WebUI's folder, where test LoRA files are put for a while")
