"""nginx's configuration: read, explained, printed, written."""
