"""Scripts that are always shown, and the runner that calls them in each phase of a request."""

from modules import errors

AlwaysVisible = object()

scripts_data: list = []


class Script:
    def elem_id(self, name):
        return f"script_{self.title().lower()}_{name}"

    def before_process(self, p, *args):
        pass

    def process_before_every_sampling(self, p, *args, **kwargs):
        pass

    def postprocess_image(self, p, pp, *args):
        pass

    def postprocess(self, p, processed, *args):
        pass


class ScriptRunner:
    """Calls scripts with their arguments; an error in one is reported and ignored."""

    def __init__(self, scripts_and_args):
        self.scripts_and_args = list(scripts_and_args)

    def run(self, phase, p, *leading, **kwargs):
        for script, args in self.scripts_and_args:
            try:
                getattr(script, phase)(p, *leading, *args, **kwargs)
            except Exception:
                errors.report(f"script {phase}", exc_info=True)
