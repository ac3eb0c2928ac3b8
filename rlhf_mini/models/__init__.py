"""Language models at work: encoding, sampling, log-probabilities, values and scores, over rows without padding."""
