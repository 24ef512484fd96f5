class InterruptedException(BaseException):
    """Ends the sampling; the last latent is the picture."""
