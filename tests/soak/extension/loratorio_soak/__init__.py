"""What the soak test asks a running WebUI, and the faults that it lets happen there."""
