"""A run as one HTML page that opens from the disk."""
