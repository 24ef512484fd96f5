"""Where the host computes."""

import torch

device = torch.device("cpu")
