"""Gets models: the catalog of recommended ones, and the door to the Hub."""
