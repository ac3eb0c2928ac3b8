"""A conversation with the stages in the terminal."""
