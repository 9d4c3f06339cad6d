"""certdrop-import: takes over what other ACME clients left."""
