"""The extension's script: shows the accordion and hands each sampling over to the host's module."""

import networks
from modules import errors, script_callbacks, scripts
from modules.ui_components import InputAccordion

from lib_loratorio.deltas.memory import is_out_of_memory
from lib_loratorio.errors import LoratorioError, SettingsError
from lib_loratorio.hosts import of_this_webui
from lib_loratorio.hosts.webui import options, own_words, pool, suited
from lib_loratorio.hosts.webui.maps import last_map
from lib_loratorio.page import accordion
from lib_loratorio.page.api import add_routes
from lib_loratorio.page.xyz_grid import add_axes, with_axes
from lib_loratorio.settings import INFOTEXT, Settings

host = of_this_webui()


class LoratorioScript(scripts.Script):
    def title(self):
        return accordion.TITLE

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        controls = accordion.build(
            InputAccordion, self.elem_id, options.starting_settings(), lambda: pool.known().values()
        )
        self.infotext_fields = accordion.infotext_fields(controls)
        self.paste_field_names = accordion.sent_fields()
        return controls

    def before_process(self, p, *args):
        args = with_axes(p, args)
        if not host.start(p) or Settings.is_off(args):
            return
        host.listen(p)
        try:
            p.extra_generation_params[INFOTEXT] = Settings.from_args(args).to_infotext()
        except SettingsError:
            return  # told where the sampling starts, which is where it can be stopped

    def process_before_every_sampling(self, p, *args, **kwargs):
        args = with_axes(p, args)
        if Settings.is_off(args):
            return
        try:
            host.prepare(p, Settings.from_args(args))
        except LoratorioError as error:
            _refuse(p, str(error))
        except Exception as error:
            if is_out_of_memory(error):
                return _refuse(
                    p,
                    "memory ran out while the LoRAs were prepared. Use fewer LoRAs, or a smaller "
                    "memory budget in the settings.",
                )
            errors.report("LoRAtorio could not start", exc_info=True)
            host.stop(
                p,
                f"LoRAtorio could not start: {type(error).__name__}: {error}. Please report this with the "
                "console's output.",
            )

    def postprocess_batch_list(self, p, pp, *args, batch_number=None, **kwargs):
        if not Settings.is_off(with_axes(p, args)):
            host.batch_done(p, batch_number)

    def postprocess_image(self, p, pp, *args):
        host.image_done(p, pp.image)

    def postprocess(self, p, processed, *args):
        host.finish(p, processed)


def _refuse(p, message):
    if options.stop_on_error():
        host.stop(p, message)
    else:
        host.leave_alone(p, message)


def _add_routes(_, app):
    add_routes(app, networks.available_networks, last_map, pool.named, suited.problem_of)


script_callbacks.on_ui_settings(options.add_options)
script_callbacks.on_app_started(_add_routes)
script_callbacks.on_before_ui(lambda: add_axes(scripts.scripts_data))
script_callbacks.on_before_ui(own_words.register)
script_callbacks.on_cfg_denoiser(host.on_cfg_denoiser)
script_callbacks.on_cfg_denoised(host.on_cfg_denoised)
