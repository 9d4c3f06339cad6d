"""The watcher: shows and reports the public state, as _certdrop-watch."""
