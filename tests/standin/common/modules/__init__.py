"""What is the same in every host."""
