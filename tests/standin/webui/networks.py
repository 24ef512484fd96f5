"""The host's networks: listed, loaded, and merged lazily into each layer when it is next used."""

import gradio
import torch
import torch.nn.functional as F
from modules import shared
from network import Network, create_module

loaded_networks: list[Network] = []
networks_in_memory: dict[str, Network] = {}
available_networks: dict = {}
available_network_aliases: dict = {}
forbidden_network_aliases: dict = {}
errors: dict[str, int] = {}
loads: list[str] = []
"""Names in the order in which files were read."""


def load_network(name, on_disk):
    loads.append(name)
    network = Network(name, on_disk)
    layers = shared.sd_model.network_layer_mapping
    network.modules = {
        key: create_module(network, key, w, layers[key]) for key, w in on_disk.layers.items() if key in layers
    }
    network.bundle_embeddings = dict(on_disk.embeddings)
    return network


def load_networks(names, te_multipliers=None, unet_multipliers=None, dyn_dims=None):
    held = {network.name: network for network in loaded_networks if network.name in names}
    words = shared.sd_model.cond_stage_model.embeddings
    for network in loaded_networks:
        for word in network.bundle_embeddings:
            words.pop(word, None)
    loaded_networks.clear()
    missing = []
    for place, name in enumerate(names):
        on_disk = available_network_aliases.get(name)
        network = held.get(name)
        if on_disk is not None:
            network = network or networks_in_memory.get(name)
            if network is None or on_disk.mtime > network.mtime:
                try:
                    network = networks_in_memory[name] = load_network(name, on_disk)
                except Exception:
                    continue  # a broken file is printed and left out
        if network is None:
            missing.append(name)
            continue
        network.mentioned_name = name
        network.te_multiplier = te_multipliers[place] if te_multipliers else 1.0
        network.unet_multiplier = unet_multipliers[place] if unet_multipliers else 1.0
        network.dyn_dim = dyn_dims[place] if dyn_dims else 1.0
        loaded_networks.append(network)
        words.update(network.bundle_embeddings)
    if missing:
        gradio.Warning(f"Lora not found: {', '.join(missing)}")
    while len(networks_in_memory) > shared.opts.lora_in_memory_limit:
        del networks_in_memory[next(iter(networks_in_memory))]


def _copy_or_none(tensor):
    return None if tensor is None else tensor.detach().to("cpu", copy=True)


def _put(layer, field, value):
    if value is None:
        setattr(layer, field, None)
    else:
        getattr(layer, field).copy_(value)


@torch.no_grad()
def network_apply_weights(layer):
    """Makes a layer's weights those of the loaded networks: from the backup, unless they already are."""
    name = getattr(layer, "network_layer_name", None)
    wanted = tuple((net.name, net.te_multiplier, net.unet_multiplier, net.dyn_dim) for net in loaded_networks)
    if name is None or wanted == getattr(layer, "network_current_names", ()):
        return
    if not hasattr(layer, "network_backup"):
        layer.network_backup = _copy_or_none(layer.weight), _copy_or_none(layer.bias)
    _put(layer, "weight", layer.network_backup[0])
    _put(layer, "bias", layer.network_backup[1])
    for net in loaded_networks:
        if name in net.modules:
            try:
                _merge(net.modules[name], layer)
            except RuntimeError:
                errors[net.name] = errors.get(net.name, 0) + 1
    layer.network_current_names = wanted


def _merge(module, layer):
    delta, bias = module.calc_updown(layer.weight)
    if layer.weight.dim() == 4 and layer.weight.shape[1] == 9:  # an inpainting model's first layer
        delta = F.pad(delta, (0, 0, 0, 0, 0, 5))
    layer.weight.copy_(layer.weight + delta)
    if bias is not None and layer.bias is None:
        layer.bias = torch.nn.Parameter(bias.clone(), requires_grad=False)
    elif bias is not None:
        layer.bias.copy_(layer.bias + bias)


class Merging:
    """Mixed into a layer's class: merges in the layer's own forward, as the host does for all of torch's."""

    def forward(self, x):
        if not shared.opts.lora_functional:
            network_apply_weights(self)
            return super().forward(x)
        return self._functional(x) if loaded_networks else super().forward(x)

    def _functional(self, x):
        result = super().forward(x)
        for net in loaded_networks:
            if self.network_layer_name in net.modules:
                result = result + _operation(self, x, *net.modules[self.network_layer_name].calc_updown(self.weight))
        return result


def _operation(layer, x, weight, bias):
    if isinstance(layer, torch.nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(layer, torch.nn.Conv2d):
        return layer._conv_forward(x, weight, bias)
    if isinstance(layer, torch.nn.GroupNorm):
        return F.group_norm(x, layer.num_groups, weight, bias, layer.eps)
    return F.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)
