"""Kinds of LoRAs that diffusers does not know: files of them, and what each changes, in float64."""

import copy

import torch
from safetensors.torch import save_file
from tests_made import ALPHA, RANK, build

SCALE = ALPHA / RANK
LINEAR, CONVOLUTION, NORM = "attn1.to_q", "resnets.0.conv1", "resnets.0.norm1"


def cp(t, a, b):
    return torch.einsum("ijkl,ip,jr->prkl", t, a, b)


def rotated(w, blocks, alpha):
    q = blocks - blocks.transpose(1, 2)
    q = q * min(1, alpha.item() / q.norm().item())
    eye = torch.eye(q.shape[1], dtype=q.dtype)
    r = (eye + q) @ torch.linalg.inv(eye - q)
    return torch.einsum("knm,kn...->km...", r, w.unflatten(0, q.shape[:2])).flatten(0, 1).contiguous()


def decomposed(w, down, up, dora_scale):
    changed = w + SCALE * (up.flatten(1) @ down.flatten(1)).view_as(w)
    norm = changed.transpose(0, 1).flatten(1).norm(dim=1).view(1, -1, *[1] * (w.dim() - 2))
    return changed * dora_scale / norm


def loha(w, t, s):
    product = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"])
    return w + s * SCALE * product.view_as(w)


def loha_cp(w, t, s):
    product = cp(t["hada_t1"], t["hada_w1_a"], t["hada_w1_b"]) * cp(t["hada_t2"], t["hada_w2_a"], t["hada_w2_b"])
    return w + s * SCALE * product


def lokr(w, t, s):
    w1, w2 = t["lokr_w1"], t["lokr_w2"]
    return w + s * torch.kron(w1.view(*w1.shape, *[1] * (w2.dim() - 2)), w2)


def lokr_factored(w, t, s):
    w1, w2 = t["lokr_w1_a"] @ t["lokr_w1_b"], t["lokr_w2_a"] @ t["lokr_w2_b"]
    w2 = w2.view(w2.shape[0], -1, *w.shape[2:])
    return w + s * SCALE * torch.kron(w1.view(*w1.shape, *[1] * (w.dim() - 2)), w2)


def lokr_cp(w, t, s):
    w2 = cp(t["lokr_t2"], t["lokr_w2_a"], t["lokr_w2_b"])
    return w + s * SCALE * torch.kron(t["lokr_w1"][..., None, None], w2.contiguous())


def glora(w, t, s):
    return w + s * SCALE * (t["b2.weight"] @ t["b1.weight"] + w @ t["a2.weight"] @ t["a1.weight"])


EQUATIONS = {
    "dora": (
        1.0,
        lambda w, t, s: decomposed(w, t["lora_down.weight"], t["lora_up.weight"], t["dora_scale"]),
        (LINEAR, CONVOLUTION),
    ),
    "loha": (0.8, loha, (LINEAR, CONVOLUTION)),
    "loha_cp": (0.8, loha_cp, (CONVOLUTION,)),
    "lokr": (0.8, lokr, (LINEAR, CONVOLUTION)),
    "lokr_factored": (0.8, lokr_factored, (LINEAR, CONVOLUTION)),
    "lokr_cp": (0.8, lokr_cp, (CONVOLUTION,)),
    "full": (0.8, lambda w, t, s: w + s * t["diff"], (LINEAR, CONVOLUTION)),
    "norm": (0.8, lambda w, t, s: w + s * t["w_norm"], (NORM,)),
    "ia3": (0.8, lambda w, t, s: w * (1 + s * t["weight"][:, None]), (LINEAR,)),
    "ia3_input": (0.8, lambda w, t, s: w * (1 + s * t["weight"]), (LINEAR,)),
    "glora": (0.8, glora, (LINEAR,)),
    "oft": (1.0, lambda w, t, s: rotated(w, t["oft_blocks"], t["alpha"]), (LINEAR, CONVOLUTION)),
}


def written(pipe, folder, kind, ends, seed=1):
    """A file of this kind for the UNet's layers with these ends, and the tensors by layer."""
    generator = torch.Generator().manual_seed(seed)
    state, of_layers = {}, {}
    for name, layer in pipe.unet.named_modules():
        if not name.endswith(ends):
            continue
        of_layer = build(kind, layer.weight.shape, generator)
        if layer.bias is None:
            of_layer.pop("diff_b", None)
        of_layers[name] = {part: tensor.double() for part, tensor in of_layer.items()}
        prefix = "oft_unet_" if kind == "oft" else "lora_unet_"
        state |= {f"{prefix}{name.replace('.', '_')}.{part}": tensor for part, tensor in of_layer.items()}
    path = folder / f"{kind}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path, of_layers


def latents(pipe, **kwargs):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(pipe.dtype)
    return pipe("a cat", num_inference_steps=2, output_type="latent", latents=noise, **kwargs).images


def expected(pipe, of_layers, kind):
    """The latents of a pipeline whose UNet's weights are changed as the kind's equation says, in float64."""
    strength, equation, _ = EQUATIONS[kind]
    changed = copy.deepcopy(pipe).to(torch.float64)
    with torch.no_grad():
        for name, tensors in of_layers.items():
            layer = changed.unet.get_submodule(name)
            layer.weight.copy_(equation(layer.weight.clone(), tensors, strength))
            for part in ("diff_b", "b_norm"):
                if part in tensors:
                    layer.bias += strength * tensors[part]
    return latents(changed)
