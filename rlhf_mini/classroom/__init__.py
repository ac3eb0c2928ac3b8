"""What the lessons run on: guesses, checks of exercises, notebooks, offline pages and expected figures."""
