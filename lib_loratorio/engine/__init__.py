"""One sampling, composed; knows no host."""
