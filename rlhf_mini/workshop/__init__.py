"""The class as labelers: phones rank responses, and their rankings train a reward model and a policy."""
