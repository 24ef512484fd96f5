"""What adapters change in a model's layers, row by row of a batch."""
