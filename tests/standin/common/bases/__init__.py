"""What hosts have alike, for their own modules to build on."""
