"""certdrop-check: examines what makes issuing or renewing fail."""
