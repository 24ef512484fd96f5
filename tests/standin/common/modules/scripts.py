"""Scripts that are always shown, and the runner that calls them in each phase of a request."""

from modules import errors

AlwaysVisible = object()

scripts_data: list = []


class Script:
    args_from = args_to = 0
    filename = None

    def title(self):
        return ""

    def elem_id(self, name):
        return f"script_{self.title().lower()}_{name}"

    def before_process(self, p, *args):
        pass

    def process_before_every_sampling(self, p, *args, **kwargs):
        pass

    def postprocess_batch_list(self, p, pp, *args, **kwargs):
        pass

    def postprocess_image(self, p, pp, *args):
        pass

    def postprocess(self, p, processed, *args):
        pass


class ScriptRunner:
    """Calls scripts with their arguments; an error in one is reported and ignored."""

    def __init__(self, scripts_and_args):
        self.scripts_and_args = list(scripts_and_args)

    @property
    def alwayson_scripts(self):
        return [script for script, _ in self.scripts_and_args]

    def place_args(self, p):
        """Puts every script's arguments into the request's, and tells the script where they are."""
        p.script_args = ()
        for script, args in self.scripts_and_args:
            script.args_from = len(p.script_args)
            p.script_args += tuple(args)
            script.args_to = len(p.script_args)

    def run(self, phase, p, *leading, **kwargs):
        for script, args in self.scripts_and_args:
            try:
                getattr(script, phase)(p, *leading, *args, **kwargs)
            except Exception:
                errors.report(f"script {phase}", exc_info=True)
