"""Options, progress and the model. The model is set after the scripts are imported, so that one that reads it then
fails.
"""

from types import SimpleNamespace

from modules import errors  # noqa: F401  (scripts may reach it from here, too)


class OptionInfo:
    def __init__(self, default=None, label="", component=None, component_args=None, section=None):
        self.default, self.label, self.component, self.component_args, self.section = (
            default,
            label,
            component,
            component_args,
            section,
        )
        self.comment_after = ""

    def info(self, text):
        self.comment_after += f" ({text})"
        return self

    def needs_reload_ui(self):
        return self.info("requires Reload UI")


class Options:
    def __init__(self, **values):
        self.__dict__.update(values)
        self.data_labels = {}

    def add_option(self, key, info):
        self.data_labels[key] = info
        self.__dict__.setdefault(key, info.default)


opts = Options(
    batch_cond_uncond=True,
    pad_cond_uncond=False,
    pad_cond_uncond_v0=False,
    persistent_cond_cache=True,
    skip_early_cond=0.0,
    use_old_scheduling=False,
    lora_functional=False,
    lora_in_memory_limit=0,
    grid_save=True,
    grid_format="png",
    grid_extended_filename=False,
)

cmd_opts = SimpleNamespace(lora_dir="/loras")

state = SimpleNamespace(interrupted=False, skipped=False, sampling_step=0, sampling_steps=0)
