"""Other extensions in miniature: what they do to the model, its rows, its calls and its texts."""

from types import FunctionType

import torch
from oracle import Equations, map_text


def of_extension(folder, function):
    """A function of an extension in this folder, if in any."""
    if folder is None:
        return function
    code = function.__code__.replace(co_filename=f"/webui/extensions/{folder}/scripts/extension.py")
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


def layer(host, name):
    return dict(host.denoiser_model().named_modules())[
        next(path for path, _ in host.denoiser_model().named_modules() if path.rpartition(".")[2] == name)
    ]


class InHalves:
    """Tells conditional from unconditional rows as NegPiP and Regional Prompter do: of twice as many rows as there are
    pictures by halves, of as many by the number of calls so far; others it leaves alone.
    """

    def __init__(self, host, pictures, folder):
        self.pictures, self.calls, self.kind = pictures, 0, None
        # The Forge family's batches have the negative prompt first, and so they come one after the other.
        self.first = host.package == "forge"
        self.handle = layer(host, "to_v").register_forward_hook(of_extension(folder, lambda *args: self.act(*args)))

    def act(self, module, inputs, output):
        kinds = self.kinds(len(output))
        if kinds is None:
            return output
        return output * torch.tensor([0.6 if kind else 1.5 for kind in kinds]).to(output).reshape(-1, 1, 1)

    def kinds(self, rows):
        if self.kind is not None:
            return [self.kind] * rows
        if rows == 2 * self.pictures:
            return [self.first] * self.pictures + [not self.first] * self.pictures
        if rows == self.pictures:
            self.calls += 1
            return [self.first if self.calls % 2 else not self.first] * rows
        return None


class ByHalves(Equations):
    def __init__(self, host, neighbour, *args, **fields):
        super().__init__(host, *args, **fields)
        self.neighbour = neighbour

    def rows(self, number, x, sigma, place, **row):
        self.neighbour.kind = place is None
        try:
            return super().rows(number, x, sigma, place, **row)
        finally:
            self.neighbour.kind = None


class Again:
    """Calls the model once more when the step's predictions are there, on other latents, with the prompt in all rows or
    with the texts of the step; moves away from what it gets.
    """

    def __init__(self, host, only_prompt):
        self.only_prompt = only_prompt
        host.script_callbacks.on_cfg_denoiser(of_extension("sd-webui-incantations", lambda p: self.begin(p)))
        host.script_callbacks.on_cfg_denoised(of_extension("sd-webui-incantations", lambda p: self.end(p)))

    def begin(self, params):
        self.x, self.sigma, self.image = params.x.clone(), params.sigma, params.image_cond
        self.texts = [params.text_cond, params.text_cond if self.only_prompt else params.text_uncond]

    def end(self, params):
        text = torch.cat(self.texts)
        again = params.inner_model(self.latents(), self.sigma, cond={"c_crossattn": [text], "c_concat": [self.image]})
        if self.only_prompt:
            c = len(again) // 2
            params.x[:c] += 2 * (params.x[:c] - again[:c])
        else:
            params.x += 2 * (params.x - again)

    def latents(self):
        return self.x * 0.8


class MovedAway(Equations):
    """The prompt's prediction moved away from the one on other latents, and with `both` the negative prompt's."""

    both = False

    def guided(self, number, x, sigma, cond, omegas):
        others = [self.aside(number, x * 0.8, sigma, place, omega) for place, omega in enumerate(omegas)]
        degraded = self.blended(number, others)
        return super().guided(number, x, sigma, cond + 2 * (cond - degraded), omegas)

    def unconditional(self, number, x, sigma, omegas):
        uncond = super().unconditional(number, x, sigma, omegas)
        if not self.both:
            return uncond
        degraded = super().unconditional(number, x * 0.8, sigma, omegas, keeping=False)
        return uncond + 2 * (uncond - degraded)


class BothMovedAway(MovedAway):
    both = True


class OtherText(Equations):
    """All texts of prompts are changed."""

    change = staticmethod(lambda tokens: tokens)

    def text(self, model, number, place):
        text = super().text(model, number, place)
        return text if place is None else map_text(self.change, text)
