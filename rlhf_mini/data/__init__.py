"""Other people's data: files and data sets in the usual formats, as the examples that the stages read."""
