import gradio


class InputAccordion(gradio.Checkbox):
    """A checkbox that is also a block to put other components into."""
