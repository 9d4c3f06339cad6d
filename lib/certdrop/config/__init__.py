"""What the administrator's files say."""
