"""Which roots are trusted, and by whom."""
