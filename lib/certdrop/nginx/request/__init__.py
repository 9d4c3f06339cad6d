"""What nginx does with one request, by its configuration: phase after phase, as nginx 1.22 to 1.29 go through them."""
