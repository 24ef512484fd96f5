"""What AUTOMATIC1111's WebUI and the Forge family have in common: requests, messages, the bracket of a sampling."""
