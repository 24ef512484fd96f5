"""One module a host; each holds its host's quirks and nothing of the math."""
