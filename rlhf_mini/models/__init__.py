"""Running language models on rows without padding: encoding, sampling, log-probabilities, values, scores."""
