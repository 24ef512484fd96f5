"""A request as the Forge family samples it: from clones of the checkpoint's patchers."""

from typing import ClassVar

from modules import errors

from bases import processing


class Processing(processing.Processing):
    cached_c: ClassVar[list] = [None, None, None]  # one more than A1111's, which holds nothing of use here
    cached_uc: ClassVar[list] = [None, None, None]
    cached_hr_c: ClassVar[list] = [None, None, None]
    cached_hr_uc: ClassVar[list] = [None, None, None]

    def run_batch(self):
        self.is_hr_pass = False
        self.sd_model.forge_objects = self.sd_model.forge_objects_original.shallow_copy()
        self.parse_prompts()
        self.activate(self.extra_network_data)
        self._take_networks()
        self.setup_conds()
        return self.sample()

    def activate(self, data):
        """As in the host, an error is reported, and everything stays as it has come to be until then."""
        if self.disable_extra_networks:
            return
        try:
            super().activate(data)
        except Exception:
            errors.report("error activating networks", exc_info=True)

    def setup_conds(self):
        super().setup_conds()
        if self.enable_hr and not self.is_hr_pass:
            self.activate(self.hr_extra_network_data)
            self.calculate_hr_conds()
            self.activate(self.extra_network_data)

    def model_changed(self):
        self.activate(self.extra_network_data)

    def sampled(self, x, steps=None):
        self._take_networks()
        return super().sampled(x, steps)

    def _take_networks(self):
        self.sd_model.forge_objects = self.sd_model.forge_objects_after_applying_lora.shallow_copy()
