"""Guidance: the rows of every condition, then of each picture's negative one, evaluated and combined."""

import torch
from bases import denoiser
from modules import shared
from modules.script_callbacks import CFGDenoisedParams, CFGDenoiserParams, cfg_denoised_callback, cfg_denoiser_callback


def _joined(first, second):
    if isinstance(first, dict):
        return {key: torch.cat([first[key], second[key]]) for key in first}
    return torch.cat([first, second])


def _part(condition, rows):
    return {key: value[rows] for key, value in condition.items()} if isinstance(condition, dict) else condition[rows]


def _as_model_input(text, image):
    return {**(text if isinstance(text, dict) else {"c_crossattn": [text]}), "c_concat": [image]}


class CFGDenoiser(denoiser.CFGDenoiser):
    def pad_cond_uncond(self, cond, uncond):
        """Makes both equally long with empty text."""
        difference = cond.shape[1] - uncond.shape[1]
        return _with_empty(cond, -difference), _with_empty(uncond, difference)

    def pad_cond_uncond_v0(self, cond, uncond):
        """Makes `uncond` as long as `cond`: by its last token, or cut."""
        tokens = uncond["crossattn"] if isinstance(uncond, dict) else uncond
        last = tokens[:, -1:].expand(-1, max(0, cond.shape[1] - tokens.shape[1]), -1)
        tokens = torch.cat([tokens[:, : cond.shape[1]], last], 1)
        if isinstance(uncond, dict):
            uncond["crossattn"] = tokens
            return cond, uncond
        return cond, tokens

    def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        places, text, negative = self.conditions(x, cond, uncond)
        pictures = len(places)
        rows = [picture for picture, subprompts in enumerate(places) for _ in subprompts] + list(range(pictures))
        params = CFGDenoiserParams(x[rows], image_cond[rows], sigma[rows], 0, self.steps, text, negative, self)
        cfg_denoiser_callback(params)
        x_in, sigma_in, text, negative = params.x, params.sigma, params.text_cond, params.text_uncond

        skip = self.skips_early() or bool(self.step % 2 and 0 < s_min_uncond and sigma[0] < s_min_uncond)
        if skip:  # the image conditions keep their rows, as the host's do
            x_in, sigma_in = x_in[:-pictures], sigma_in[:-pictures]
        if text.shape[1] != negative.shape[1]:
            if shared.opts.pad_cond_uncond_v0:
                text, negative = self.pad_cond_uncond_v0(text, negative)
            elif shared.opts.pad_cond_uncond:
                text, negative = self.pad_cond_uncond(text, negative)

        together = shared.opts.batch_cond_uncond
        if skip or text.shape[1] == negative.shape[1]:
            all_text = text if skip else _joined(text, negative)
            size = len(x_in) if together else pictures
            chunks = [(slice(start, start + size), all_text, start) for start in range(0, len(x_in), size)]
        else:
            size, c = pictures * 2 if together else pictures, text.shape[0]
            chunks = [(slice(start, min(start + size, c)), text, start) for start in range(0, c, size)]
            chunks.append((slice(c, None), negative, 0))
        out = torch.zeros_like(x_in)
        for chunk, source, first in chunks:
            size = len(x_in[chunk])
            # one call for everything gets the image conditions whole
            image = params.image_cond if size == len(x_in) else params.image_cond[chunk]
            part = _part(source, slice(first, first + size))
            out[chunk] = self.inner_model(x_in[chunk], sigma_in[chunk], cond=_as_model_input(part, image))
        if skip:
            out = torch.cat([out, out[[subprompts[0][0] for subprompts in places]]])

        denoised_params = CFGDenoisedParams(out, 0, self.steps, self.inner_model)
        cfg_denoised_callback(denoised_params)

        guided = out[-pictures:].clone()
        for picture, subprompts in enumerate(places):
            for place, weight in subprompts:
                guided[picture] += (out[place] - out[-pictures:][picture]) * weight * (1.0 if skip else cond_scale)
        return self.done(guided)


def _with_empty(condition, tokens):
    if tokens <= 0:
        return condition
    if isinstance(condition, dict):
        condition["crossattn"] = _with_empty(condition["crossattn"], tokens)
        return condition
    empty = shared.sd_model.cond_stage_model_empty_prompt
    return torch.cat([condition, empty.repeat(len(condition), tokens // empty.shape[1], 1)], 1)
