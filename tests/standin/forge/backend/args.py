"""Switches of the host's user interface."""

dynamic_args = {"online_lora": False}
