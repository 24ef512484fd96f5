"""LoRA files and the tags that ask for them."""
