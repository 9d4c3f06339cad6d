"""certdrop-status: shows the public state."""
