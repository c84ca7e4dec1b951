"""Talk to it: the HTTP client and its response types."""
