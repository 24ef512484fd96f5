"""What kind of model is loaded, and switches of the host's user interface: by name and as a mapping."""


class _Switches:
    online_lora = False
    nunchaku = False
    pid = False

    def __getitem__(self, name):
        return getattr(self, name)

    def __setitem__(self, name, value):
        setattr(self, name, value)


dynamic_args = _Switches()
