"""Options of the tests that need a WebUI that is already running: tests/e2e and tests/soak."""

import torch

torch.set_num_threads(1)  # tensors as small as the tests' only wait for each other's threads


def pytest_addoption(parser):
    parser.addoption("--webui-url", default=None, help="address of a running WebUI, such as http://127.0.0.1:7860")
    parser.addoption(
        "--screenshots", default=None, help="folder for pictures of the WebUI's page, as the README has them"
    )
    parser.addoption("--webui-dir", default=None, help="that WebUI's folder, where test LoRA files are put for a while")
    parser.addoption(
        "--worker-url", default=None, help="address of a second WebUI, a worker of the first's Distributed"
    )
    parser.addoption("--worker-dir", default=None, help="that WebUI's folder, where the same test LoRA files are put")

    soak = parser.getgroup("soak", "campaign of mixed requests, tests/soak")
    soak.addoption("--seed", type=int, default=1, help="of the campaign's requests")
    soak.addoption("--requests", type=int, default=50, help="how many of them")
    soak.addoption("--only", default=None, help="one of them, such as 37, or some, such as 30-37")
    soak.addoption("--without", default="", help="kinds of faults to be left out, divided by commas")
    soak.addoption("--log", default=None, help="file that a line in JSON is added to for each request")
    soak.addoption("--work", type=int, default=120, help="most evaluations of one model in a request")
    soak.addoption(
        "--checkpoints", default="tiny-v,tiny-inpainting,tiny-sdxl", help="names of others to be switched to"
    )
