current_unet = None
"""Set where an option replaces the model's UNet by a compiled one."""
